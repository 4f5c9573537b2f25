"""The agent's configuration: what is written is what is meant, and what cannot be meant is named with its path."""

import re
from pathlib import Path

import msgspec
import pytest

from sustain.agent.config import (
    AgentConfig,
    GuestMemorySection,
    PackagesSection,
    _key,
    _unit,
    address,
    load,
    parse,
)
from sustain.errors import ConfigError
from sustain.schedulers.guest_memory import host_state
from sustain.schedulers.guest_memory.model import Host
from sustain.schedulers.large_pages import budget
from sustain.schedulers.large_pages.model import HostView, Target
from sustain.schedulers.packages.config import PackagesConfig
from sustain.schedulers.packages.policy import Policy

GIB = 1 << 30

WHOLE = """
[agent]
listen = "unix:/run/sustain/agent.sock"
state_dir = "/run/elsewhere"
log = "/var/log/sustain/plans.jsonl"
blind_after = "2m"

[guest_memory]
period = "5s"
discover = true
statistics_period = "3s"

[[guest_memory.guests]]
name = "vm1"
qmp = "/run/vm1.qmp"
guest_agent = "/run/vm1.qga"

[[guest_memory.guests]]
name = "box"
kind = "cgroup"
cgroup = "/sys/fs/cgroup/box"

[guest_memory.urgency]
period = "1s"
stall = "50ms"

[guest_memory.policy]
idle_tax = 0.5
goal_free = "2GiB"
fresh = "20s"

[guest_memory.policy.default]
shares = 10

[guest_memory.policy.guests.vm1]
shares = 2000
reservation = "1.5GiB"
limit = 4294967296
mechanisms = ["balloon"]
"""


def test_everything_that_can_be_said() -> None:
    found = parse(WHOLE)
    assert found.agent.blind_after_s == 120
    assert address(found.agent.listen) == "/run/sustain/agent.sock"
    section = found.guest_memory
    assert section is not None
    assert (section.period_s, section.statistics_period_s, section.discover) == (5, 3, True)
    assert [guest.name for guest in section.ways.guests] == ["vm1", "box"]
    assert section.ways.guests[1].kind == "cgroup"
    urgency = section.urgency
    assert (urgency.period_s, urgency.stall_s, urgency.window_s, urgency.watch) == (1, 0.05, 2, True)
    policy = section.policy
    assert (policy.idle_tax, policy.goal_free_bytes, policy.fresh_s) == (0.5, 2 << 30, 20)
    assert policy.default.shares == 10
    vm1 = policy.guests["vm1"]
    assert (vm1.reservation_bytes, vm1.limit_bytes, vm1.mechanisms) == (3 << 29, 4 << 30, ("balloon",))


def test_an_empty_file_runs_nothing() -> None:
    assert parse("") == AgentConfig()
    assert parse("[guest_memory]").guest_memory == GuestMemorySection()


@pytest.mark.parametrize(
    ("old", "new", "path", "hint"),
    [
        ("[agent]", "[agnet]", "agnet", "agent"),
        ("blind_after", "blind_aftr", "agent.blind_aftr", "blind_after"),
        ('blind_after = "2m"', 'hung_after = "0s"', "agent.hung_after", "2m"),
        ("period =", "periode =", "guest_memory.periode", "period"),
        ("qmp =", "qpm =", "guest_memory.guests[0].qpm", "qmp"),
        ("cgroup = ", "path = ", "guest_memory.guests[1].path", "cgroup"),
        ("reservation =", "reserved =", "guest_memory.policy.guests.vm1.reserved", "reservation"),
        ("reservation =", "reservation_bytes =", "policy.guests.vm1.reservation_bytes", "reservation"),
        ("idle_tax = 0.5", 'idle_tax = "much"', "guest_memory.policy.idle_tax", ""),
        ("idle_tax = 0.5", "idle_tax = 1.0", "idle_tax cannot be 1.0", "less than 1"),
        ('"1.5GiB"', '"1.5 bananas"', "guest_memory.policy.guests.vm1.reservation", "256MiB"),
        ('"5s"', '"soon"', "guest_memory.period", "500ms"),
        ('"5s"', '"10ms"', "guest_memory.period", "10s"),
        ('statistics_period = "3s"', 'statistics_period = "2.5s"', "guest_memory.statistics_period", ""),
        ('["balloon"]', '["baloon"]', "policy.guests.vm1.mechanisms", ""),
        ('name = "vm1"\n', "", "guest_memory.guests[0].name is missing", ""),
        ('name = "box"', 'name = "vm1"', "vm1", "unique"),
        ("discover = true", "", "", ""),
        ("shares = 10\n", "shares = true\n", "guest_memory.policy.default.shares", ""),
        ("[guest_memory.policy.default]\nshares = 10", "default = 3\n", "policy.default is not a table", ""),
        ("stall =", "stalls =", "guest_memory.urgency.stalls", "stall"),
        ('"50ms"', '"3s"', "guest_memory.urgency.stall", "window"),
        ("[agent]", "[agent", "line 2", "TOML"),
        ("unix:/run/sustain/agent.sock", "0.0.0.0:80", "agent.listen", "127.0.0.1"),
        ("unix:/run/sustain/agent.sock", "localhost:80", "agent.listen", "127.0.0.1"),
        ("unix:/run/sustain/agent.sock", "127.0.0.1:http", "agent.listen", "127.0.0.1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, path: str, hint: str) -> None:
    assert old in WHOLE
    file = tmp_path / "agent.toml"
    file.write_text(WHOLE.replace(old, new, 1))
    if not path:
        load(file)  # vm1 is there, discovered or not
        return
    with pytest.raises(ConfigError, match=re.escape(path)) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert hint in caught.value.hint
    assert caught.value.hint


def test_a_policy_for_nobody_is_a_slip_unless_guests_are_discovered() -> None:
    text = WHOLE.replace("guests.vm1]", "guests.vm2]")
    assert "vm2" in msgspec.structs.asdict(parse(text).guest_memory.policy)["guests"]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"guest_memory\.policy\.guests\.vm2") as caught:
        parse(text.replace("discover = true", ""))
    assert "vm1" in caught.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        load(tmp_path / "none.toml")


def test_addresses() -> None:
    assert address("127.0.0.1:9750") == ("127.0.0.1", 9750)
    assert address("[::1]:1") == ("::1", 1)
    assert address("") is None


PAGES = """
[large_pages]
period = "5s"
counting = "damon"
count_period = "20s"
keep = true

[[large_pages.targets]]
name = "db"
command = "postgres"

[[large_pages.targets]]
name = "vms"
guest = "*"

[large_pages.policy]
budget = "4GiB"
bloat = "256MiB"
residence = "5min"
recount = "sample"

[large_pages.policy.targets.db]
shares = 2000
most = "1GiB"
"""


@pytest.mark.parametrize(
    "policy",
    [
        "",
        'goal_free = "9GiB"',
        'bounds = { clear = "30GiB", soft = "20GiB", hard = "1GiB", low = "1MiB" }',
        'goal_free = "25GiB"\nbounds = { clear = "30GiB", soft = "20GiB", hard = "1GiB", low = "1MiB" }',
    ],
)
def test_large_pages_go_before_any_guest_gives_memory(policy: str) -> None:
    """Whatever the host is to keep: memory is scarce for them before the guest memory scheduler does anything."""
    found = parse(f"[guest_memory]\n[guest_memory.policy]\n{policy}\n[large_pages]\n")
    assert found.guest_memory is not None
    assert found.large_pages is not None
    for total in (2 * GIB, 64 * GIB, 1024 * GIB):
        at = host_state.bounds(Host(total_bytes=total), found.guest_memory.policy)
        assert at is not None
        goal_bytes, states = at
        available = max(goal_bytes, states.soft_bytes)
        assert budget.is_scarce(
            found.large_pages.policy,
            HostView(total_bytes=total, available_bytes=available, pressure=0.0),
            before=False,
        )
    given = parse('[guest_memory.policy]\ngoal_free = "9GiB"\n[large_pages.policy]\naim = "1GiB"\n')
    assert given.large_pages is not None
    assert given.large_pages.policy.aim_bytes == GIB


def test_large_pages_alone_and_everything_of_them() -> None:
    found = parse(PAGES)
    assert found.guest_memory is None
    section = found.large_pages
    assert section is not None
    assert (section.period_s, section.count_period_s, section.counting, section.keep) == (
        5,
        20,
        "damon",
        True,
    )
    assert [target.name for target in section.targets] == ["db", "vms"]
    policy = section.whole.policy
    assert (policy.budget_bytes, policy.bloat_bytes, policy.residence_s) == (4 << 30, 256 << 20, 300)
    db = policy.of(Target(name="db.17", wanted="db", pid=17, started=1))
    assert (policy.recount, db.shares, db.most_bytes) == ("sample", 2000, 1 << 30)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('command = "postgres"', 'command = "postgres"\npid = 3', "exactly one way"),
        ('name = "vms"', 'name = "db"', "there twice"),
        ('residence = "5min"', "high = 600", "high cannot be 600"),
        (
            'guest = "*"\n\n',
            'guest = "vm"\n\n[large_pages.policy.targets.ab]\nshares = 5\n',
            "no target is called",
        ),
        ('residence = "5min"', 'fresh = "30s"', "less than two counting periods"),
        ('period = "5s"', 'period = "0.5s"', "large_pages.period: less than a second"),
        ("keep = true", "kept = true", "large_pages.kept: no such key"),
    ],
)
def test_what_cannot_be_meant_of_large_pages_is_named(before: str, after: str, said: str) -> None:
    assert before in PAGES
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(PAGES.replace(before, after))


PACKAGES = """
[packages]
period = "20s"
findings = "/var/lib/sustain/findings.json"
metric_timeout = "2s"
libvirt = "qemu:///system"
without_cpuset = "threads"

[packages.metrics]
requests = "/usr/local/bin/requests --rate"

[[packages.groups]]
name = "vms"
guest = "*"

[[packages.groups]]
name = "batch"
cgroup = "batch.slice/*"

[packages.policy]
pack_after = "5min"
memory_per_s = "64MiB"
least_saving_w = 5
trial = "unknown"
smt = "use"
interrupts = true

[packages.policy.default]
slack = "50ms"

[packages.policy.groups."vms.db"]
movable = false
priority = 2
apart = "db"
memory = false
"""


def test_packages_and_everything_of_them() -> None:
    section = parse(PACKAGES).packages
    assert section is not None
    whole, policy = section.whole, section.policy
    assert (section.period_s, whole.metric_timeout_s, whole.libvirt) == (20, 2, "qemu:///system")
    assert whole.without_cpuset == "threads"
    assert whole.metrics == {"requests": "/usr/local/bin/requests --rate"}
    assert whole.findings == "/var/lib/sustain/findings.json"
    assert [(each.name, each.guest, each.cgroup) for each in whole.groups] == [
        ("vms", "*", None),
        ("batch", None, "batch.slice/*"),
    ]
    assert (policy.pack_after_s, policy.memory_bytes_per_s, policy.least_saving_w) == (300, 64 << 20, 5)
    assert (policy.trial, policy.smt, policy.interrupts) == ("unknown", "use", True)
    db = policy.of("vms.db")
    assert (db.movable, db.priority, db.apart, db.memory, db.slack_s) == (False, 2, "db", False, None)
    assert policy.of("vms.web").slack_s == 0.05


def test_every_key_of_packages_can_be_said() -> None:
    section = PackagesSection()
    assert set(PackagesConfig.__struct_fields__) <= set(section.__struct_fields__)
    units = {"average": "_s", "pack_after": "_s", "memory_per_s": "_bytes", "least_saving_w": "", "high": ""}
    fields = {_key(field): field for field in Policy.__struct_fields__}
    assert {key: _unit(fields[key]) for key in units} == units


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('name = "batch"', 'name = "batch"\npid = 3', "exactly one way"),
        ('name = "vms"', 'name = "batch"', "there twice"),
        ('pack_after = "5min"', 'pack_after = "5s"', "packages: policy.pack_after cannot be 5"),
        ('memory_per_s = "64MiB"', "memory_per_s = -1", "packages.policy.memory_per_s -1 is negative"),
        (
            'memory_per_s = "64MiB"',
            'memory_bytes_per_s = "1MiB"',
            "packages.policy.memory_bytes_per_s: no such",
        ),
        ('trial = "unknown"', 'trial = "always"', "packages.policy.trial"),
        ('slack = "50ms"', 'slack = "0s"', "packages: policy.default.slack must be a time"),
        ('groups."vms.db"', "groups.web", "policy.groups.web: no group is called that"),
        ("priority = 2", 'priority = "high"', "packages.policy.groups.vms.db.priority"),
        ("priority = 2", "prioroty = 2", "packages.policy.groups.vms.db.prioroty: no such key"),
        ("/usr/local/bin/requests --rate", "'open", "packages: metrics.requests"),
        ('metric_timeout = "2s"', 'metric_timeout = "0s"', "packages: metric_timeout"),
        ('period = "20s"', 'period = "0.5s"', "packages.period: less than a second"),
        ("findings =", "finding =", "packages.finding: no such key"),
    ],
)
def test_what_cannot_be_meant_of_packages_is_named(before: str, after: str, said: str) -> None:
    assert before in PACKAGES
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(PACKAGES.replace(before, after))
