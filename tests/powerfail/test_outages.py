"""Outages of stores: a real upsd, real processes on hosts of their own, power cut at the worst moment.

The oracle is outside of what fails: each command writes down, on the host's disk, every commit that was confirmed to
it. Stores are of `memory` durability and lie in the host's memory, so after a power cut the copy there is worth
nothing, and what another host lacks is lost.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sustain._native import Control
from tests.powerfail.hosts import Host, Site, allowed, boottime_ns, pids_in
from tests.powerfail.rack import available, until

pytestmark = [
    pytest.mark.skipif(not allowed(), reason="network namespaces need root, ip and tc"),
    pytest.mark.skipif(not available(), reason="nut-server is not installed: scripts/setup-debian.sh test"),
]

LOW_S, MARGIN_S, LATENCY_S = (
    60.0,
    1.0,
    2.0,
)  # battery.runtime.low of the rack; --power-margin; BudgetPolicy.latency_s
DEBOUNCE_S = 0.6
QUICK = (
    *("--power-poll", "100ms", "--power-debounce", f"{DEBOUNCE_S}s", "--power-settle", "800ms"),
    *("--power-margin", f"{MARGIN_S}s", "--outage-stop-timeout", "1s"),
)
MOST_S = 12.0  # of battery, where the budget is to bind
RATE = 300_000.0  # bytes per second, on a link that is to be too slow
APP = ("--pause", "0.004")  # about 1 MB per second: several times what such a link carries


def usable(seconds: float) -> str:
    """battery.runtime of which so many seconds can be used for a drain."""
    return f"{seconds + LOW_S + MARGIN_S + LATENCY_S:g}"


def slow(a: Host, seconds: float) -> None:
    """From now on: a link that binds, on a battery that lasts so long."""
    a.ups.set("battery.runtime", usable(seconds))
    a.throttle(RATE)


def crawl(a: Host) -> None:
    """From now on: a link on which what is left takes longer than all that the test does meanwhile."""
    a.throttle(RATE / 30)


def outage(host: Host, **more: str) -> int:
    return host.ups.set_all({"ups.status": "OB DISCHRG", **more})


def ac(host: Host) -> None:
    host.ups.set("ups.status", "OL CHRG")


def epoch(host: Host, number: int) -> Callable[[], Any]:
    return lambda: [each for each in host.said("commit") if each["epoch"] == number]


def lines(*hosts: Host) -> Callable[[], str]:
    return lambda: "\n".join(["", *(host.output()[-4000:] for host in hosts)])


def goes_on(host: Host, number: int, *others: Host) -> dict[str, Any]:
    """Wait until the host commits in that epoch; what its command found."""
    until(epoch(host, number), lambda: f"{host.name} commits in epoch {number}{lines(host, *others)()}")
    return next(each for each in host.said("start") if each["epoch"] == number)


def last(host: Host) -> dict[str, Any]:
    return host.said("commit")[-1]


def report(host: Host, count: int = 1) -> dict[str, Any]:
    """The newest outage's, once its work is done."""

    def done() -> Any:
        found = host.reports("outage")
        return found[-1] if len(found) == count and found[-1]["outcome"] != "saving" else None

    found: dict[str, Any] = until(done, lambda: f"{host.name} reports its outage{lines(host)()}")
    return found


def one_at_a_time(site: Site) -> None:
    newest = 0
    for entry in site.all_said("commit"):
        assert entry["epoch"] >= newest, f"{entry} after epoch {newest}"
        newest = entry["epoch"]


def nothing_is_lost(site: Site) -> None:
    """Every command found exactly what had been committed before it, and whole."""
    for start in site.all_said("start"):
        before = [each["n"] for each in site.all_said("commit") if each["ns"] < start["ns"]]
        assert start["n"] == max(before, default=0), start
        assert start["wrong"] == ""


def untouched(host: Host) -> None:
    """Its command was neither stopped nor started again, and commits."""
    n = last(host)["n"]
    until(lambda: last(host)["n"] > n, lambda: f"{host.name} goes on{lines(host)()}")
    assert len(host.said("start")) == 1
    assert not host.said("asked")
    assert not host.reports("outage")


def stopped(host: Host) -> None:
    """Wait until its command is down because of an outage. One that waits for the budget is killed."""

    def down() -> bool:
        state = host.state()
        return state.get("role") in ("saving", "saved") and state["command_pid"] is None

    until(down, lambda: f"the command of {host.name} is down{lines(host)()}")


def seen(host: Host, word: str) -> None:
    """Wait until it says so of its power."""
    until(lambda: host.state().get("power") == word, lambda: f"{host.name} sees {word}{lines(host)()}")


# nothing is done


def test_flaps_stop_nothing(tmp_path: Path) -> None:
    with Site(tmp_path, power=(*QUICK, "--power-debounce", "3s"), app=("--pause", "0.01")) as site:
        a, _ = site.begin()
        for _ in range(2):
            outage(a)
            seen(a, "flapping")
            ac(a)
        seen(a, "flapping" if a.state()["power"] == "flapping" else "on AC")
        untouched(a)
        assert site.record()["state"] == "held"


def test_a_source_that_is_lost_stops_nothing(tmp_path: Path) -> None:
    with Site(tmp_path, power=QUICK, app=("--pause", "0.01")) as site:
        a, b = site.begin()
        seen(a, "on AC")
        a.ups.kill_upsd()
        seen(a, "unknown")  # after 15 s
        untouched(a)
        a.ups.restart()
        seen(a, "on AC")
        untouched(a)
        # And an outage is one again.
        outage(a)
        goes_on(b, site.begun + 1, a)
        nothing_is_lost(site)


# an outage


def test_an_outage_brings_everything_away_and_b_goes_on(tmp_path: Path) -> None:
    with Site(tmp_path, power=QUICK, app=APP) as site:
        a, b = site.begin()
        until(lambda: a.ups.clients() == [a.address], "upsd counts a among those that it waits for")
        outage(a)
        goes_on(b, site.begun + 1, a)
        nothing_is_lost(site)
        one_at_a_time(site)
        done = report(a)
        assert (done["outcome"], done["complete"], done["missing"]) == ("saved", True, [])
        assert done["end"] == done["destinations"][0]["acked"]
        assert b.reports("takeover")[0]["start_position"] == done["end"]
        assert b.reports("takeover")[0]["complete"] is True
        until(lambda: a.ups.clients() == [], "upsd is told that it may cut the power")
        assert a.state()["role"] == "saved"
        # Low, and then the order to shut down, which stands beside OL, too: a has nothing left to do.
        a.ups.set("ups.status", "OB LB DISCHRG")
        seen(a, "low")
        a.ups.force_shutdown()
        seen(a, "forced shutdown")
        ac(a)
        until(lambda: len(b.said("commit")) > 50, "b goes on")
        assert a.state()["power"] == "forced shutdown"
        assert a.state()["role"] == "saved"
        a.cut()
        assert b.state()["role"] == "primary"
        nothing_is_lost(site)


def test_a_forced_shutdown_that_comes_first_is_obeyed_at_once(tmp_path: Path) -> None:
    with Site(tmp_path, power=(*QUICK, "--outage-hold", "60s"), app=APP) as site:
        a, b = site.begin()
        a.ups.force_shutdown()
        goes_on(b, site.begun + 1, a)
        nothing_is_lost(site)
        assert report(a)["power"] == "forced shutdown"


def test_a_runtime_that_lies_and_collapses(tmp_path: Path) -> None:
    """The outage is sat out, for the battery seems to last; then it is low all of a sudden."""
    with Site(tmp_path, power=(*QUICK, "--outage-hold", "60s"), app=("--pause", "0.005")) as site:
        a, b = site.begin()
        outage(a)
        seen(a, "on battery")
        untouched(a)
        a.ups.set_all({"battery.runtime": "30", "ups.status": "OB LB DISCHRG"})
        goes_on(b, site.begun + 1, a)
        nothing_is_lost(site)
        assert report(a)["complete"] is True


def test_two_outages_in_a_row(tmp_path: Path) -> None:
    with Site(tmp_path, fed="ab", power=QUICK, app=APP) as site:
        a, b = site.begin()
        outage(a)
        goes_on(b, site.begun + 1, a)
        ac(a)
        a.becomes("standby")
        site.replicated(b, a)
        outage(b)
        goes_on(a, site.begun + 2, b)
        ac(b)
        b.becomes("standby")
        outage(a)
        goes_on(b, 5, a)
        nothing_is_lost(site)
        one_at_a_time(site)
        assert [each["epoch"] for each in a.reports("outage")] == [site.begun, site.begun + 2]


def test_both_hosts_on_battery(tmp_path: Path) -> None:
    """Nobody takes over on a battery; when AC is back at one of them, that one goes on."""
    with Site(tmp_path, fed="ab", power=QUICK, app=APP) as site:
        a, b = site.begin()
        outage(b)
        seen(b, "on battery")
        outage(a)
        report(a)
        until(
            lambda: "power of this host" in b.state()["waiting_for"],
            lambda: f"b does not take over{lines(b)()}",
        )
        assert site.record()["state"] == "saved"
        ac(b)
        goes_on(b, site.begun + 1, a)
        nothing_is_lost(site)


# the power comes back


def test_ac_is_back_in_the_middle_of_a_drain(tmp_path: Path) -> None:
    with Site(tmp_path, power=QUICK, app=APP) as site:
        a, b = site.begin()
        slow(a, 12)
        full_of_commits(site, a, b, 4)
        outage(a)
        crawl(a)
        stopped(a)
        ac(a)
        goes_on(a, 3, b)
        a.throttle(None)
        nothing_is_lost(site)
        one_at_a_time(site)
        assert not b.said("start")
        done = report(a)
        assert done["outcome"] == "resumed"
        # What was behind in the middle of it arrives all the same.
        site.replicated(a, b)
        a.throttle(None)
        end = last(a)["position"]
        until(lambda: (site.acked(a, b) or 0) >= end, lambda: f"b has it{lines(a, b)()}")


def full_of_commits(site: Site, a: Host, b: Host, seconds: float) -> None:
    """Wait until commits are held back by the budget of the slow link, with `seconds` of its work unshipped,
    or half of the budget.

    Not sooner: what was committed while the link was faster may lie above the budget until it has been shipped.
    """

    def full() -> bool:
        control = Control(str(a.store))
        try:
            words = control.words()
        finally:
            control.close()
        acked = site.acked(a, b)
        if words is None or acked is None or not words["budget_bytes"] < 2 * MOST_S * RATE:
            return False
        behind = words["committed"] - acked
        # On a loaded machine less than the link's rate is measured, and the budget may be smaller than `seconds` of it.
        enough = min(seconds * RATE, words["budget_bytes"] / 2)
        return words["delay_lsn"] < words["committed"] <= words["limit_lsn"] and behind > enough

    until(full, lambda: f"commits of {a.name} are held back{lines(a, b)()}", limit_s=60.0)


def test_ac_is_back_after_all_was_saved_and_nobody_has_claimed(tmp_path: Path) -> None:
    with Site(tmp_path, power=QUICK, app=APP) as site:
        a, b = site.begin()
        assert b.process is not None
        b.process.send_signal(signal.SIGSTOP)  # its supervisor alone: what it receives goes on
        outage(a)
        report(a)
        assert site.record()["state"] == "saved"
        ac(a)
        goes_on(a, 3, b)
        b.process.send_signal(signal.SIGCONT)
        site.replicated(a, b)
        assert not b.said("start")
        nothing_is_lost(site)
        one_at_a_time(site)


# destinations that fail


@pytest.mark.parametrize("how", ["dead", "full"])
def test_a_destination_that_fails_does_not_keep_the_other_from_having_it_all(
    tmp_path: Path, how: str
) -> None:
    with Site(tmp_path, "abc", power=QUICK, app=APP) as site:
        a, b, c = site.hosts
        a.start("--create").becomes("primary")
        if how == "full":
            (b.memory / "ballast").write_bytes(bytes(100 << 20))
        for each in (b, c):
            each.start()
        site.replicated(a, c)
        if how == "dead":
            site.replicated(a, b)
        slow(a, 12)
        full_of_commits(site, a, c, 2)
        began = site.record()["epoch"]
        outage(a)
        stopped(a)
        if how == "dead":
            b.cut()
        start = goes_on(c, began + 1, a)
        assert start["n"] == last(a)["n"]
        nothing_is_lost(site)
        done = report(a)
        assert (done["outcome"], done["complete"]) == ("saved", True)
        (lacking,) = done["missing"]
        assert f"//{b.address}:" in lacking["url"]
        assert lacking["to"] == done["end"]
        assert (lacking["from"] or 0) < done["end"]


@pytest.mark.parametrize("how", ["killed", "stale"])
def test_a_source_that_is_lost_in_the_middle_of_an_outage_ends_nothing(tmp_path: Path, how: str) -> None:
    with Site(tmp_path, power=QUICK, app=APP) as site:
        a, b = site.begin()
        slow(a, 8)
        full_of_commits(site, a, b, 2)
        outage(a)
        stopped(a)
        a.ups.kill_upsd() if how == "killed" else a.ups.stall()
        goes_on(b, site.begun + 1, a)
        nothing_is_lost(site)
        assert report(a)["complete"] is True
        assert a.state()["role"] == "saved"


# the battery


def test_a_battery_that_dies_too_early_leaves_word_of_what_is_missing(tmp_path: Path) -> None:
    with Site(tmp_path, power=QUICK, app=APP) as site:
        a, b = site.begin()
        slow(a, 8)
        full_of_commits(site, a, b, 4)
        began = site.record()["epoch"]
        outage(a)
        crawl(a)
        stopped(a)
        until(lambda: a.reports("outage"), lambda: f"a begins its report{lines(a)()}")
        a.cut()
        start = goes_on(b, began + 1, a)
        assert start["wrong"] == "", "what b has is not a prefix"
        assert start["n"] < last(a)["n"]
        (taken,) = b.reports("takeover")
        assert taken["complete"] is not True
        held = taken["held_position"]
        positions = {each["n"]: each["position"] for each in a.said("commit")}
        assert positions[start["n"]] <= held < positions[start["n"] + 1]
        # What a wrote down on its disk names the positions that were still on their way.
        (left,) = a.reports("outage")
        assert left["outcome"] == "saving"
        assert left["complete"] is False
        (missing,) = left["missing"]
        assert missing["to"] == last(a)["position"] == left["end"]
        assert missing["from"] <= held, "it claims to be held what is not"
        # b knows that something is missing, and how much at least.
        assert taken["missing_bytes"] is None or taken["missing_bytes"] > 0


ROUNDS = int(os.environ.get("SUSTAIN_OUTAGE_ROUNDS", "18"))
SITES = 6
USABLE_S = 3.0


@pytest.mark.timeout(120 + 20 * ROUNDS)
def test_the_budget_binds_and_the_power_is_cut_when_the_promised_seconds_are_over(tmp_path: Path) -> None:
    """Dozens of times; SUSTAIN_OUTAGE_ROUNDS=300 for hundreds. Several sites at once, each with its own seed."""
    import random
    import threading

    seed = int(os.environ.get("SUSTAIN_OUTAGE_SEED", random.randrange(1 << 30)))
    print(f"SUSTAIN_OUTAGE_SEED={seed}")
    failures: list[BaseException] = []
    stories: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        try:
            rounds = range(number, ROUNDS, SITES)
            with Site(tmp_path / f"site{number}", fed="ab", power=QUICK, app=APP) as site:
                for rack in site.racks.values():
                    rack.set("battery.runtime", usable(USABLE_S))
                site.begin()
                for each in rounds:
                    stories.append(one_round(site, each, rng))
                    if failures:
                        return
        except BaseException as error:  # noqa: BLE001 - told by the test, in its own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(min(SITES, ROUNDS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(stories))
    if failures:
        raise failures[0]
    assert len(stories) == ROUNDS


def one_round(site: Site, number: int, rng: Any) -> str:
    """The primary's power fails, and is cut around the promised moment; it then comes back as a standby."""
    a, b = site.hosts if site.hosts[0].state().get("role") == "primary" else site.hosts[::-1]
    began_ns = boottime_ns()
    a.throttle(RATE)
    full_of_commits(site, a, b, USABLE_S / 2)
    full_s = (boottime_ns() - began_ns) / 1e9
    began = site.record()["epoch"]
    since_ns = outage(a)
    late_s = rng.choice((rng.uniform(-4.5, 0.0), rng.uniform(-4.5, 0.0), rng.uniform(0.0, 0.2), 0.0))
    promise_ns = since_ns + int((USABLE_S + LATENCY_S + late_s) * 1e9)
    until(lambda: boottime_ns() >= promise_ns, "the promised seconds are over")
    ahead = last(a)["position"] - (site.acked(a, b) or last(a)["position"])
    cut_ns = a.cut()
    start = goes_on(b, began + 1, a)
    confirmed = last(a)["n"]
    missing = confirmed - start["n"]
    story = f"round {number}: cut {late_s:+.2f} s after the promise, {ahead} bytes behind, {missing} commits missing, "
    story += f"budget in use after {full_s:.1f} s, goes on after {(start['ns'] - cut_ns) / 1e9:.1f} s"
    assert start["wrong"] == "", story
    assert late_s < 0 or missing == 0, f"{story}{lines(a, b)()}"
    assert missing >= 0, story
    ac(a)
    assert not pids_in(a.space)
    a.power_on()
    a.throttle(None)
    a.start()
    site.replicated(b, a)
    return f"{story}, all in {(boottime_ns() - began_ns) / 1e9:.1f} s"
