"""A guest in which nothing happens, as its agent tells of it."""

from collections.abc import Mapping


def files_at_rest(meminfo_kib: Mapping[str, int]) -> dict[str, str]:
    """What its agent is asked for, of a guest with such a /proc/meminfo in which nothing happens."""
    stalls = "avg10=0.00 avg60=0.00 avg300=0.00 total=0"
    return {
        "/proc/meminfo": "".join(f"{name}: {kib} kB\n" for name, kib in meminfo_kib.items()),
        "/proc/vmstat": "pswpin 0\npswpout 0\nworkingset_refault_file 0\nworkingset_refault_anon 0\npgmajfault 10\n",
        "/proc/pressure/memory": f"some {stalls}\nfull {stalls}\n",
    }
