"""The manifest: what is written is read again, and nothing that was cut off or has a flipped bit is."""

import hashlib
import string
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sustain import NotARegion, RegionCorrupt, RegionError, RegionNewerVersion
from sustain.errors import ConfigError
from sustain.powerfail.regions.manifest import (
    Manifest,
    RegionIdentity,
    Seal,
    Segment,
    check_name,
    decode,
    encode,
    pages_of,
)

U64 = (1 << 64) - 1
names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)
people = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
digests = st.binary(min_size=16, max_size=16)
identities = st.builds(RegionIdentity, digests.filter(any), st.integers(1, (1 << 56) - 1), names)
seals = st.builds(
    Seal, st.integers(1, 1000), st.integers(1, 1000), people, digests, st.integers(0, U64), people
)
segments = st.builds(
    Segment,
    st.text("0123456789abcdef", min_size=32, max_size=32),
    st.integers(0, U64),
    st.integers(0, U64),
    digests,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    seal = draw(st.none() | seals)
    listed = tuple(draw(st.lists(segments, max_size=4)))
    return Manifest(
        draw(identities),
        draw(st.integers(1000, U64)),
        draw(st.integers(1000, U64)),
        seal,
        draw(st.booleans()),
        listed,
        draw(st.integers(0, len(listed))),
        draw(st.binary(min_size=8, max_size=8)),
    )


SEALED = Manifest(
    RegionIdentity(b"u" * 16, 10_000, "vm1"),
    3,
    7,
    Seal(3, 7, "host-a", b"d" * 16, 1_700_000_000_000_000_000, "by hand"),
    True,
    (Segment("0f" * 16, 100, 2, b"i" * 16),),
    1,
)

GOLDEN = "20af670574f85e2ea00294805b11f3e1a8a03a4254d0d9c8e49a2ebedd3ecd8b"


@given(manifests())
def test_what_is_written_is_read_again(manifest: Manifest) -> None:
    assert decode(encode(manifest), "here") == manifest


def test_it_is_written_as_documented() -> None:
    """By the offsets of docs/formats/region.md: what version 1 wrote stays readable."""
    data = encode(replace(SEALED, nonce=b"12345678"))
    assert len(data) == 512 + 64 + 16
    assert data[0:8] == b"SUSREGN\0"
    assert struct.unpack_from("<II", data, 8) == (1, 3)
    assert data[16:32] == bytes(16)
    assert data[32:48] == b"u" * 16
    assert struct.unpack_from("<QII", data, 48) == (10_000, 4096, 1)
    assert struct.unpack_from("<QQQQ", data, 64) == (3, 7, 3, 7)
    assert data[96:112] == b"d" * 16
    assert struct.unpack_from("<QII", data, 112) == (1_700_000_000_000_000_000, 1, 1)
    assert data[128:200] == b"\3vm1" + bytes(68)
    assert data[200:328] == b"\6host-a" + bytes(121)
    assert data[328:504] == b"\7by hand" + bytes(168)
    assert data[504:512] == b"12345678"
    assert data[512:576] == b"0f" * 16 + struct.pack("<QQ", 100, 2) + b"i" * 16
    assert data[576:] == hashlib.blake2b(data[:576], digest_size=16).digest()
    assert hashlib.sha256(encode(SEALED)).hexdigest() == GOLDEN


def test_cut_off_anywhere_it_is_refused() -> None:
    data = encode(SEALED)
    for length in range(len(data)):
        with pytest.raises((NotARegion, RegionCorrupt)):
            decode(data[:length], "here")
    for more in (b"\0", b"\0" * 64, data):
        with pytest.raises(RegionCorrupt):
            decode(data + more, "here")


def test_any_flipped_bit_is_refused() -> None:
    data = bytearray(encode(SEALED))
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RegionError, match="here"):
            decode(bytes(data), "here")
        data[bit // 8] ^= 1 << bit % 8
    assert decode(bytes(data), "here") == SEALED


def resigned(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with other bytes at `at`, and a digest that fits: a manifest that somebody wrote so."""
    body = data[:at] + new + data[at + len(new) : -16]
    return body + hashlib.blake2b(body, digest_size=16).digest()


def test_what_a_newer_version_wrote_is_named_as_such() -> None:
    data = encode(SEALED)
    for at, new in ((8, b"\2"), (24, b"\1")):
        with pytest.raises(RegionNewerVersion, match="version") as caught:
            decode(resigned(data, at, new), "here")
        assert caught.value.hint
    assert decode(resigned(data, 16, b"\1"), "here") == SEALED  # a compatible feature


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (32, bytes(16)),  # no UUID
        (48, bytes(8)),  # no size
        (56, b"\0\x20"),  # other pages
        (60, b"\2"),  # other digests
        (72, b"\1"),  # sealed with a number higher than any
        (64, b"\1"),  # sealed in an epoch newer than any
        (120, b"\7"),  # more segments than there are
        (124, b"\2"),  # more of them sealed
        (128, b"\0"),  # no name
        (129, b"/"),  # a name that leads elsewhere
        (201, b"\xff"),  # an owner that is not text
        (512, b"../../.."),  # a segment whose name leads elsewhere
    ],
)
def test_nonsense_with_a_good_digest_is_refused(at: int, new: bytes) -> None:
    with pytest.raises(RegionCorrupt, match="damaged"):
        decode(resigned(encode(SEALED), at, new), "here")


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "a b", "ä", "x" * 65, "a\n"])
def test_names_that_are_not_usable(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


def test_pages_of() -> None:
    assert [pages_of(size) for size in (1, 4095, 4096, 4097, 8192)] == [1, 1, 1, 2, 2]


def test_a_seal_that_does_not_fit_is_refused() -> None:
    for owner, reason, number in (("x" * 128, "", 1), ("", "y" * 176, 1), ("", "", 0), ("a\0b", "", 1)):
        with pytest.raises(ConfigError):
            Seal(1, number, owner, b"d" * 16, 0, reason)
