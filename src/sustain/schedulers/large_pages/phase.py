"""Whether nothing is mapped large at the beginning, as phase one wants it, and how to make it so.

Used by `sense`, whose observations say it. What is mapped large when counting begins has one accessed bit for 512
pages, so which of them are used is unknown until it is mapped small.
"""

from collections.abc import Sequence

from sustain.host.large_pages import SETTING
from sustain.schedulers.large_pages.model import Blocks, Counting, Settings

FORBIDDEN = (
    "the process forbids large pages (PR_SET_THP_DISABLE), so none of its blocks can be mapped large: to begin with "
    f"small pages, start it with `echo never > {SETTING}` instead"
)


def problems(
    large_at_first: int, large: int, blocks: int, guest: bool, settings: Settings
) -> tuple[str, ...]:
    """Of one target: how many of its blocks were mapped large when it was first looked at, and how many are now."""
    if not large_at_first or not large:
        return ()
    how = (
        "QEMU advises its guest's RAM MADV_HUGEPAGE, so only the system's setting keeps it small"
        if guest
        else "it was mapped large by the system's setting, or by its own advice"
    )
    return (
        f"{large_at_first} of its blocks were mapped large at the beginning ({large} of {blocks} are now), and their "
        f"used pages cannot be told apart: {how}: `echo never > {SETTING}` before it starts (now: "
        f"{settings.enabled or 'unknown'}); of one that runs, a recount by sampled demotion maps them small in turn",
    )


def notes(kind: Counting, settings: Settings, parts: Sequence[Blocks]) -> tuple[str, ...]:
    """Of the whole host."""
    found: list[str] = []
    if settings.enabled == "always" or (settings.enabled == "madvise" and parts):
        what = "all memory" if settings.enabled == "always" else "memory that is advised so"
        found.append(
            f"the kernel maps {what} large by itself, in the order of addresses ({SETTING} is "
            f"{settings.enabled}): `never` leaves it to the counts"
        )
    if settings.enabled is None:
        found.append(f"this kernel has no large pages ({SETTING} is not there): CONFIG_TRANSPARENT_HUGEPAGE")
    if kind == "page-idle":
        found.append("used pages are counted exactly (page_idle); a shared page counts for all that map it")
    elif kind == "damon":
        found.append(
            "used pages are estimated (DAMON), within a sample's interval, with the error that is stated"
        )
    return tuple(found)
