"""What peers are compared with, of guests' memory: the best that their operator could set, too."""

from bench.guest_memory_policies import Table, compare, judge_work
from bench.harness import Answer
from bench.peers.ballooning import Mom, Proxmox
from sim.guest_memory import scenarios

from bench import guest_memory_guests, guest_memory_policies


def work(table: Table, name: str) -> float:
    found = table[name]["work"]
    assert found is not None
    return found


def test_each_peer_is_shown_also_with_the_minimum_at_which_guests_do_most() -> None:
    table = compare(scenarios.mixed, 600)
    for peer in ("MOM", "Proxmox"):
        (other,) = (name for name in table if name.startswith(f"{peer}, minimum "))
        assert work(table, other) > work(table, peer)
    assert {"sustain", "nothing"} < set(table)


def test_a_peer_that_does_best_with_its_usual_minimum_is_shown_once() -> None:
    # Nothing to do for anybody: one goal, whatever the minimum.
    table = compare(scenarios.stepped, 60)
    assert set(table) == {"sustain", "MOM", "Proxmox", "nothing"}


def test_work_is_judged_by_the_best_row_of_all_peers() -> None:
    rows = {"sustain": 0.95, "MOM": 0.88, "MOM, minimum 0.75": 0.9, "Proxmox": 0.91, "nothing": 1.0}
    for best, met in ((0.96, False), (0.94, True)):
        table: Table = {name: {"work": each} for name, each in rows.items()}
        table["Proxmox, minimum 0.75"] = {"work": best}
        found = Answer("", "", ours=None, peers={}, limit={}, runs=1)
        judge_work(found, "load", table)
        (asked,) = found.reach
        assert asked.value == 0.95 / best
        assert asked.met is met


def test_peers_of_real_guests_have_their_minimum() -> None:
    mom = guest_memory_guests._controller("MOM, goal 0.2, minimum 0.75")
    proxmox = guest_memory_guests._controller("Proxmox, goal 0.1, minimum 0.75")
    usual = guest_memory_guests._controller("MOM, goal 0.2")
    assert isinstance(mom, Mom)
    assert mom.min_share == 0.75
    assert isinstance(proxmox, Proxmox)
    assert proxmox.min_share == 0.75
    assert (mom.threshold, proxmox.used_goal) == (0.2, 0.9)
    assert isinstance(usual, Mom)
    assert usual.min_share == guest_memory_policies.MIN_SHARE
