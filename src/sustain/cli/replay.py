"""Runs a scheduler over a recording of its observations, and prints what it would have done and why.

The guests, processes or groups of a recording do not react: what one plan asks for, the next observation does not
show. With --config the policy of that file, otherwise the one that the recording was made with."""

import argparse
import json
from typing import Any, TypeVar

from sustain.cli.output import add_json
from sustain.units import format_duration, format_size

T = TypeVar("T")
HELP = "run a policy over a recording, and show what it would have done"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="made by `sustain record`")
    parser.add_argument("--config", metavar="FILE", help="the policy to try (the recording's own)")
    parser.add_argument(
        "--guest",
        help="say of this guest, target, package or group, at each observation, where its figures come from",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from sustain.schedulers.guest_memory.decide import decide
    from sustain.schedulers.guest_memory.explain import explain
    from sustain.schedulers.guest_memory.model import Observation, Policy
    from sustain.schedulers.recording import Recording, read_header

    scheduler = read_header(args.file).scheduler
    if scheduler == "large-pages":
        from sustain.cli import _replay_pages

        return _replay_pages.run(args)
    if scheduler == "packages":
        from sustain.cli import _replay_packages

        return _replay_packages.run(args)
    recording = Recording(args.file, Observation, "guest-memory")
    policy = policy_of(args, recording.header, "guest_memory", Policy)
    state, begun_s, sums = None, None, dict[str, float]()
    count = actions = 0
    for seen in recording:
        decision = decide(seen, state, policy, seen.at_s)
        state, plan, count = decision.state, decision.plan, count + 1
        begun_s = seen.at_s if begun_s is None else begun_s
        for action in plan.actions:
            kind = str(action.__struct_config__.tag)
            sums[kind] = sums.get(kind, 0) + _taken(action)
        actions += len(plan.actions)
        if args.json:
            print(json.dumps({"after_s": seen.at_s - begun_s, **plan.as_dict()}))
            continue
        print(
            f"after {format_duration(seen.at_s - begun_s)}: host {plan.host_state}, {len(plan.actions)} actions"
        )
        for action in plan.actions:
            print(f"  {action.guest}: {action.__struct_config__.tag}: {action.reason}")
        if args.guest in plan:
            print("\n".join(f"  {line}" for line in explain(plan, args.guest, policy).splitlines()))
    if not args.json:
        moved = ", ".join(f"{kind} {format_size(int(total))}" for kind, total in sums.items()) or "nothing"
        print(f"{count} observations, {actions} actions; taken: {moved}. The guests did not react.")
    return 0


def policy_of(args: argparse.Namespace, header: Any, name: str, kind: type[T]) -> T:
    """The policy of a scheduler, whose section of the configuration is `name`, as --config has it or the recording.
    Raises ConfigError, RecordingError."""
    import msgspec

    from sustain.agent.config import load
    from sustain.errors import ConfigError, RecordingError

    if args.config is not None:
        section = getattr(load(args.config), name)
        if section is None:
            raise ConfigError(f"{args.config}: no [{name}]", hint="add that section; it may be empty")
        policy: T = section.policy
        return policy
    try:
        return msgspec.convert(header.policy, kind)
    except msgspec.ValidationError as error:
        raise RecordingError(
            f"{args.file}: its policy is not one of this Sustain: {error}", hint="give one with --config FILE"
        ) from None


def _taken(action: Any) -> float:
    if hasattr(action, "amount_bytes"):
        return float(action.amount_bytes)
    return max(0.0, float(action.from_bytes - action.to_bytes))
