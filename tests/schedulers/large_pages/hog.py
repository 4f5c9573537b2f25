"""A program that leaves a machine's memory without a large page: it takes nearly all that is free and locks it, then
gives back every other page. Only for a guest of the lab. `hog.py LEAVE_MIB`: how much it leaves at first. What it
keeps is not moved (vm.compact_unevictable_allowed = 0, which the caller sets), so compaction makes no large page of
those in between. Prints "full" when it has all, "holes" when it has given back half; both after a line of its input.
"""

import ctypes
import mmap
import os
import sys

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def free_bytes() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemFree:"))


def main(leave_bytes: int) -> None:
    descriptor = os.memfd_create("hog")
    size = (free_bytes() - leave_bytes) // PAGE * PAGE
    os.ftruncate(descriptor, size)
    memory = mmap.mmap(descriptor, size)
    at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    checked(libc.mlock(at, ctypes.c_size_t(size)))  # brings it all in
    print("full", flush=True)
    sys.stdin.readline()
    for page in range(0, size, 2 * PAGE):
        checked(
            libc.fallocate(descriptor, 3, ctypes.c_long(page), ctypes.c_long(PAGE))  # PUNCH_HOLE, KEEP_SIZE
        )
    print("holes", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(int(sys.argv[1]) << 20)
