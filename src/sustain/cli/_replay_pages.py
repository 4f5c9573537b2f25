"""`sustain replay` of a recording of large pages. Used by `replay`.

The processes of a recording do not react: a block that a plan would have mapped large stays as it was recorded, so the
same block is planned again and again.
"""

import argparse
import json

from sustain.cli.replay import policy_of
from sustain.units import format_duration


def run(args: argparse.Namespace) -> int:
    from sustain.schedulers.large_pages import explain
    from sustain.schedulers.large_pages.decide import decide
    from sustain.schedulers.large_pages.model import Observation
    from sustain.schedulers.large_pages.policy import Policy
    from sustain.schedulers.recording import Recording

    recording = Recording(args.file, Observation, "large-pages")
    policy = policy_of(args, recording.header, "large_pages", Policy)
    state, begun_s, count = None, None, 0
    named: set[tuple[int, int, int]] = set()
    for seen in recording:
        decision = decide(seen, state, policy, seen.now_s)
        state, plan, count = decision.state, decision.plan, count + 1
        begun_s = seen.now_s if begun_s is None else begun_s
        named |= {(each.pid, each.started, each.address) for each in plan.collapses}
        if args.json:
            print(json.dumps({"after_s": seen.now_s - begun_s, **plan.as_dict()}))
            continue
        large = f"{plan.totals.large} of {plan.totals.blocks} blocks large"
        print(f"after {format_duration(seen.now_s - begun_s)}: {large}, {len(plan.actions)} actions")
        for action in plan.actions:
            print(f"  {action.target} {action.address:#x}: {action.purpose}: {action.reason}")
        if args.guest and any(each.name == args.guest for each in plan.targets):
            print("\n".join(f"  {line}" for line in explain.of_target(plan, args.guest, policy).splitlines()))
    if not args.json:
        print(f"{count} observations; {len(named)} blocks would have been mapped large. Nothing reacted.")
    return 0
