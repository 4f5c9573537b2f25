"""A lease in etcd, for hosts that share no file system: `etcd://host:2379[,host…][/name]`.

Used through `open_lease`. The workload has one key for its owner record, one for a handover that was asked for, and one
for each member, all under `sustain/NAME/`:

    sustain/NAME/lease          the record (`codec`), changed by a transaction that compares the whole value
    sustain/NAME/handover       the last request for a handover, changed likewise
    sustain/NAME/member/HOST    what that host says of itself; goes by itself when it has been silent for a day

The record is bound to no etcd lease: it must outlive its holder (epoch, position, who it was), and who may take it
is counted by the hosts' own clocks as for every other lease store (`lease.base`), so that etcd's clock, its pauses
and its elections have no say in it. Reads are linearisable, though safety rests on the transaction alone.

A transaction may be carried out twice (`client` asks two members), after its answer was lost, or late. It does no
harm, since it compares; but *finding one's own record* after a swap that failed means two things. If it can only
have been written in this call, the swap has succeeded. If an earlier call ended without an answer, what is there may
be as old as that call, and a deadline counted from now would be too late: then the swap counts as failed, and the
caller starts again from what is there.
"""

from collections import deque
from typing import Any

from sustain.clock import Clock
from sustain.errors import LeaseError, LeaseUnavailable
from sustain.failover.lease.base import Stored, SwapLease
from sustain.failover.lease.codec import parse, parse_note, render, render_note
from sustain.failover.lease.etcd.client import Client, Limits, Refused, decoded, encoded
from sustain.failover.lease.etcd.url import EtcdUrl
from sustain.failover.lease.record import (
    RATE_MARGIN,
    Candidate,
    CandidateView,
    LeaseRecord,
    LeaseState,
    LeaseView,
)
from sustain.failover.lease.request import HandoverRequest, parse_request
from sustain.units import to_ns

_MEMBER_KEPT_S = 86_400
_ASKED_LIMIT = 256


class EtcdLease(SwapLease):
    """One supervisor's access to the lease that `url` names."""

    def __init__(
        self,
        url: EtcdUrl,
        instance: str,
        clock: Clock,
        ttl_s: float,
        margin: float = RATE_MARGIN,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(url.url, instance, clock, ttl_s, margin)
        self._client = Client(url, limits or Limits.of(ttl_s))
        self._prefix = f"sustain/{url.name}/"
        self._key = f"{self._prefix}lease"
        self._request_key = f"{self._prefix}handover"
        self._members = f"{self._prefix}member/"
        self._greeted = False
        self._asked: deque[LeaseRecord] = deque(maxlen=_ASKED_LIMIT)  # and perhaps still under way
        self._kept: tuple[str, int] | None = None  # the etcd lease of this host's note, and since when

    def close(self) -> None:
        self._client.close()

    def look(self) -> tuple[LeaseView, list[CandidateView], HandoverRequest | None]:
        began_ns = self._clock.boottime_ns()
        answer = self._ask("read", "/v3/kv/range", _range(self._prefix, whole_prefix=True))
        values = {decoded(each.get("key")): decoded(each.get("value")) for each in _kvs(answer)}
        record = self._record(values.get(self._key.encode()))
        notes = [parse_note(value) for key, value in values.items() if key.startswith(self._members.encode())]
        asked = values.get(self._request_key.encode())
        now_ns = self._clock.boottime_ns()
        heard = self._heard([note for note in notes if note is not None], now_ns)
        view = self._watch.see(record, now_ns, began_ns)
        return view, heard, None if asked is None else parse_request(asked)

    def announce(self, candidate: Candidate) -> None:
        try:
            self._put_note(candidate)
        except Refused as error:
            if not error.missing:
                raise
            self._kept = None  # it has run out: this host was silent, or stopped, for a day
            self._put_note(candidate)

    def withdraw(self, name: str) -> None:
        self._ask("write", "/v3/kv/deleterange", {"key": encoded(self._members + name)})

    def _load(self) -> LeaseRecord:
        kvs = _kvs(self._ask("read", "/v3/kv/range", _range(self._key)))
        return self._record(decoded(kvs[0].get("value")) if kvs else None)

    def _swap(self, old: LeaseRecord, new: LeaseRecord) -> bool:
        request = _swapping(self._key, None if old.state is LeaseState.ABSENT else render(old), render(new))
        asked_before = new in self._asked
        self._asked.append(new)
        answer = self._ask("write", "/v3/kv/txn", request)
        if answer.get("succeeded") or (not asked_before and self._found(answer) == new):
            # What was asked before cannot be carried out any more: the records that it compares with have gone.
            self._asked.clear()
            self._asked.append(new)  # the same may be asked again, of a grant that is not the newest
            return True
        return False

    def _found(self, answer: dict[str, Any]) -> LeaseRecord | None:
        """The record that a failed swap has found; None when that is not to be understood: it is not ours."""
        for each in answer.get("responses") or []:
            kvs = _kvs(each.get("response_range") or {})
            if kvs:
                try:
                    return self._record(decoded(kvs[0].get("value")))
                except LeaseError:
                    return None
        return None

    def _load_request(self) -> Stored | None:
        kvs = _kvs(self._ask("read", "/v3/kv/range", _range(self._request_key)))
        return Stored(decoded(kvs[0].get("value"))) if kvs else None

    def _swap_request(self, old: Stored | None, text: bytes) -> bool:
        request = _swapping(self._request_key, None if old is None else old.text, text)
        # One whose answer was lost is found by its author when he looks again: a request has an id.
        return bool(self._ask("write", "/v3/kv/txn", request).get("succeeded"))

    def _announced(self) -> list[Candidate]:
        answer = self._ask("read", "/v3/kv/range", _range(self._members, whole_prefix=True))
        notes = [parse_note(decoded(each.get("value"))) for each in _kvs(answer)]
        return [note for note in notes if note is not None]

    def _put_note(self, candidate: Candidate) -> None:
        now_ns = self._clock.boottime_ns()
        if self._kept is None or now_ns - self._kept[1] > to_ns(_MEMBER_KEPT_S / 2):
            granted = self._ask("write", "/v3/lease/grant", {"TTL": str(_MEMBER_KEPT_S)})
            self._kept = (str(granted.get("ID", "0")), now_ns)
        request = {
            "key": encoded(self._members + candidate.name),
            "value": encoded(render_note(candidate)),
            "lease": self._kept[0],
        }
        self._ask("write", "/v3/kv/put", request)

    def _record(self, value: bytes | None) -> LeaseRecord:
        if value is None:
            return LeaseRecord()
        return parse(value, f"{self.url} ({self._key})", f"`etcdctl del {self._key}`")

    def _ask(self, what: str, path: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if not self._greeted:
                # Two clusters in one URL are noticed before either is asked for a lease.
                self._client.survey(hurry=True)
                self._greeted = True
            return self._client.call(path, request)
        except Refused as error:
            raise Refused(self._said(what, error), error.code, hint=error.hint) from error
        except LeaseUnavailable as error:
            raise LeaseUnavailable(self._said(what, error), hint=error.hint) from error
        except LeaseError as error:
            raise LeaseError(self._said(what, error), hint=error.hint) from error

    def _said(self, what: str, error: LeaseError) -> str:
        return f"{self.url}: cannot {what} the lease: {error}"


def _swapping(key: str, old: bytes | None, new: bytes) -> dict[str, Any]:
    """A transaction that puts `new` where `old` is (None: nothing), and otherwise says what is there."""
    there = {"key": encoded(key), "result": "EQUAL"}
    if old is None:
        there |= {"target": "CREATE", "create_revision": "0"}
    else:
        there |= {"target": "VALUE", "value": encoded(old)}
    return {
        "compare": [there],
        "success": [{"request_put": {"key": encoded(key), "value": encoded(new)}}],
        "failure": [{"request_range": _range(key)}],
    }


def _range(key: str, *, whole_prefix: bool = False) -> dict[str, str]:
    if not whole_prefix:
        return {"key": encoded(key)}
    assert key.endswith("/")
    return {"key": encoded(key), "range_end": encoded(key[:-1] + chr(ord("/") + 1))}


def _kvs(answer: dict[str, Any]) -> list[dict[str, Any]]:
    kvs = answer.get("kvs")
    return [each for each in kvs if isinstance(each, dict)] if isinstance(kvs, list) else []
