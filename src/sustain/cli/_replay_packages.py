"""`sustain replay` of a recording of packages. Used by `replay`.

The host of a recording does not react: groups that a plan would have moved stay where they were recorded, and what its
trials find is a saving of nothing. What it shows is when a package would have been emptied, and why not before.
"""

import argparse
import json

from sustain.cli.replay import policy_of
from sustain.units import format_duration


def run(args: argparse.Namespace) -> int:
    from sustain.errors import UnknownTarget
    from sustain.schedulers.packages import explain
    from sustain.schedulers.packages.decide import decide
    from sustain.schedulers.packages.model import Observation
    from sustain.schedulers.packages.policy import Policy
    from sustain.schedulers.recording import Recording

    recording = Recording(args.file, Observation, "packages")
    policy = policy_of(args, recording.header, "packages", Policy)
    state, begun_s, count, said = None, None, 0, ""
    emptied: dict[int, float] = {}
    missing: UnknownTarget | None = None
    explained = 0
    for seen in recording:
        decision = decide(seen, state, policy, seen.now_s)
        state, plan, count = decision.state, decision.plan, count + 1
        begun_s = seen.now_s if begun_s is None else begun_s
        after_s = seen.now_s - begun_s
        for package in state.parked:
            emptied.setdefault(package, after_s)
        if args.json:
            print(json.dumps({"after_s": after_s, **plan.as_dict()}))
            continue
        if plan.verdict != said or plan.actions:
            print(f"after {format_duration(after_s)}: {plan.verdict}")
            said = plan.verdict
        for action in plan.actions:
            print(f"  {action.group}: {action.__struct_config__.tag} ({action.purpose}): {action.reason}")
        if args.guest:
            try:
                found = explain.of_name(plan, args.guest, state, policy)
            except UnknownTarget as error:  # groups come and go
                missing = error
                continue
            explained += 1
            print("\n".join(f"  {line}" for line in found.splitlines()))
    if missing is not None and not explained:
        raise missing
    if not args.json:
        first = ", ".join(f"{each} after {format_duration(after_s)}" for each, after_s in emptied.items())
        print(
            f"{count} observations; packages that would have been emptied: {first or 'none'}. Nothing reacted."
        )
    return 0
