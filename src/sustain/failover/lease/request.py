"""What an operator asks of a workload, beside its lease: that another host shall have it. Pure.

Used by `lease.base` (which keeps it), by `moving` (the primary, which answers) and by `sustain handover` (which asks
and watches). It is a record of its own, changed by swap like the owner record, so that a supervisor that knows nothing
of handovers is not disturbed by one.

A request names the epoch that it is for: it is void as soon as there is a newer one, whatever became of it. So a
request that nobody withdrew moves a workload once at most, and never from a host that was not asked. No time of day is
in it: its limit is counted by the primary, from when it first saw it.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from enum import StrEnum

FORMAT = 1


class RequestState(StrEnum):
    ASKED = "asked"  # nobody has answered yet
    ACCEPTED = "accepted"  # the primary hands over to `successor`; its command may still run
    DONE = "done"  # the successor's command runs
    REFUSED = "refused"  # nothing was changed
    CALLED_OFF = "called-off"  # given up on the way; the primary stays, or goes on again
    WITHDRAWN = "withdrawn"  # by who asked, before there was an answer

    @property
    def over(self) -> bool:
        return self not in (RequestState.ASKED, RequestState.ACCEPTED)


@dataclass(frozen=True, slots=True)
class Gave:
    """How long it took on the host that gave the workload up, by its own clock."""

    before_stop_s: (
        float | None
    )  # from the last commit to the command's SIGTERM; 0 when it committed after that
    command_end_s: float  # from then, or from the last commit after it, until the command had ended
    drain_s: float  # until the successor held all
    release_s: float  # until that was written beside the lease


@dataclass(frozen=True, slots=True)
class Took:
    """The same on the successor. `None`: it has not happened yet."""

    claim_s: float  # from the last look that still saw the old owner, until it had the lease
    promote_s: float | None = None  # until the store was open in the new epoch
    start_s: float | None = None  # until the command was started
    first_commit_s: float | None = None  # until that had committed for the first time


@dataclass(frozen=True, slots=True)
class HandoverRequest:
    """What is stored."""

    id: str
    epoch: int  # of the owner that is asked
    holder: str  # that owner
    to: str  # the wanted successor; "": whoever holds most
    limit_s: float  # until the command is told to stop
    state: RequestState = RequestState.ASKED
    successor: str = ""  # as the owner has chosen
    reason: str = ""  # of a refusal, for people
    hint: str = ""
    gave: Gave | None = None
    took: Took | None = None

    @property
    def pause_s(self) -> float | None:
        """From the last commit on the one host to the first on the other, at most; None: unknown.

        The hosts' clocks are not compared: what passes between giving the lease up and taking it is counted on both
        sides, until the one had written and from when the other still saw the old record.
        """
        gave, took = self.gave, self.took
        if gave is None or took is None or gave.before_stop_s is None:
            return None
        after = (took.promote_s, took.start_s, took.first_commit_s)
        if None in after:
            return None
        mine_s = gave.before_stop_s + gave.command_end_s + gave.drain_s + gave.release_s
        return mine_s + took.claim_s + sum(each for each in after if each is not None)


def render_request(request: HandoverRequest) -> bytes:
    """The same bytes for the same request, always: a swap may compare them."""
    body = json.dumps({"format": FORMAT, **asdict(request)}, sort_keys=True)
    return f"{body}\n{zlib.crc32(body.encode()):08x}\n".encode()


def parse_request(text: bytes) -> HandoverRequest | None:
    """None for what is no request, or one of another version: nobody acts on it, and the next one replaces it."""
    try:
        body, checksum, rest = text.decode().split("\n")
        if rest or int(checksum, 16) != zlib.crc32(body.encode()):
            return None
        held = json.loads(body)
        if held.pop("format") != FORMAT:
            return None
        gave, took = held.pop("gave"), held.pop("took")
        return HandoverRequest(
            **{
                **held,
                "state": RequestState(held["state"]),
                "gave": None if gave is None else Gave(**gave),
                "took": None if took is None else Took(**took),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
