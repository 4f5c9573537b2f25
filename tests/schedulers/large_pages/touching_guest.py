"""A real QEMU process whose guest uses its RAM in a known way: a firmware (touching_guest.s) in place of a system, so
that it starts in a second also where QEMU itself runs in an emulated machine."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from sustain.host import damon, maps
from sustain.host.pagemap import BLOCK_BYTES, PAGE_BYTES
from sustain.host.processes import Identity, identify

SOURCE = Path(__file__).with_name("touching_guest.s")
NAME = "touched"
_RAM_MIB = 64  # less is no guest to those that look for one
_PORT = 0xE9


class TouchingGuest:
    """One that runs, on one processor, which it shares with whoever called `guest`: each turn of another process has
    the processor forget translations, without which an emulated one does not see again that a page is used."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, counts: Sequence[int]) -> None:
        self._process = process
        self._counts = counts
        self._log = log
        who = identify(process.pid)
        assert who is not None
        self.who: Identity = who

    def rounds(self, count: int, limit_s: float = 120) -> None:
        """Wait until it has been around so often from now on, and one more that has begun already."""
        wanted = self._log.stat().st_size + count + 1
        deadline_s = time.monotonic() + limit_s
        while self._log.stat().st_size < wanted:
            assert self._process.poll() is None, "QEMU has ended"
            assert time.monotonic() < deadline_s, "the guest does not get on"
            time.sleep(0.01)

    def touched(self) -> dict[int, int]:
        """How many pages it touches of each block that it has written all of, by the address in the process. That
        need not be where a block of the guest's begins: QEMU aligns anonymous memory alone."""
        areas = maps.guest_ram(self.who.pid)
        assert areas
        assert len(areas) == 1
        start = areas[0].start
        end = start + (len(self._counts) + 1) * BLOCK_BYTES
        pages = [
            start + (number + 1) * BLOCK_BYTES + page * PAGE_BYTES
            for number, count in enumerate(self._counts)
            for page in range(count)
        ]
        blocks = {first: 0 for first, _ in damon.blocks([(start + BLOCK_BYTES, end)])}
        for page in pages:
            block = page // BLOCK_BYTES * BLOCK_BYTES
            if block in blocks:
                blocks[block] += 1
        return blocks


def firmware(counts: Sequence[int], place: Path) -> Path:
    """The image, made from its source."""
    source = (
        SOURCE.read_text().replace("BLOCKS", str(len(counts))).replace("COUNTS", ", ".join(map(str, counts)))
    )
    made, image = place / "firmware.o", place / "firmware"
    subprocess.run(["as", "--32", "-o", made], input=source.encode(), check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext=0", "-e0", "-o", image, made], check=True
    )
    assert image.stat().st_size == 1 << 16
    return image


@contextlib.contextmanager
def guest(counts: Sequence[int], kind: str, place: Path) -> Iterator[TouchingGuest]:
    """`kind` of its RAM: anonymous (QEMU's default) or memfd."""
    log = place / "rounds"
    log.touch()
    ram = {
        "anonymous": ["-machine", "isapc"],
        "memfd": [
            *("-object", f"memory-backend-memfd,id=ram,size={_RAM_MIB}M,share=on"),
            *("-machine", "isapc,memory-backend=ram"),
        ],
    }[kind]
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(processors)})
    try:
        process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg,thread=single", "-nodefaults", "-no-user-config"),
                *("-display", "none", "-vga", "none", "-m", str(_RAM_MIB), "-name", NAME, *ram),
                *("-bios", str(firmware(counts, place))),
                *(
                    "-chardev",
                    f"file,id=rounds,path={log}",
                    "-device",
                    f"isa-debugcon,iobase={_PORT:#x},chardev=rounds",
                ),
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            yield TouchingGuest(process, log, counts)
        finally:
            process.kill()
            process.wait()
    finally:
        os.sched_setaffinity(0, processors)
