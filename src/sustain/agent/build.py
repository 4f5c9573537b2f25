"""From a configuration to schedulers, and back to what they left.

Used by the verbs that run schedulers, look with them or put back. A scheduler that is to act gets its journal here; one
that only looks needs none of the agent's, and can be there beside a running one.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sustain.agent.config import AgentConfig, GuestMemorySection, LargePagesSection, PackagesSection
from sustain.clock import Clock, SystemClock
from sustain.errors import ConfigError, JournalBusy, JournalError
from sustain.schedulers.changes import Changes, Refused
from sustain.schedulers.guest_memory.scheduler import GuestMemory
from sustain.schedulers.journal import Journal
from sustain.schedulers.large_pages.scheduler import LargePages
from sustain.schedulers.loop import Scheduler
from sustain.schedulers.packages.act import Actuator
from sustain.schedulers.packages.reach import Reach
from sustain.schedulers.packages.scheduler import Packages
from sustain.schedulers.packages.sense import Sensor

_LOOKING = "looking"
_LOOKING_AT_PAGES = "looking-at-pages"
_FINDINGS = "packages-findings.json"  # in the state directory, where the configuration names no file
AnyScheduler = Scheduler[Any, Any, Any, Any]


def schedulers(config: AgentConfig, clock: Clock | None = None) -> list[AnyScheduler]:
    """All that are enabled, ready to act. Raises ConfigError when none is, JournalBusy when an agent runs already."""
    clock = clock or SystemClock()
    found: list[AnyScheduler] = []
    if config.large_pages is None and config.packages is None:
        enabled(config)
    directory = Path(config.agent.state_dir)
    try:
        if config.guest_memory is not None:
            memory = config.guest_memory
            found.append(
                GuestMemory(
                    memory.ways,
                    memory.policy,
                    memory.period_s,
                    clock,
                    journal_of(config, GuestMemory.name),
                    memory.urgency,
                    left=directory / f"{_LOOKING}.journal",
                )
            )
        if config.large_pages is not None:
            pages = config.large_pages
            journal = journal_of(config, LargePages.name)
            left = directory / f"{_LOOKING_AT_PAGES}.journal"
            found.append(LargePages(pages.whole, pages.period_s, clock, journal, left=left))
        if config.packages is not None:
            found.append(_packages(config, config.packages, clock, journal_of(config, Packages.name)))
    except BaseException:
        for each in found:
            each.close()
        raise
    return found


def restorers(config: AgentConfig) -> list[Callable[[], AnyScheduler | None]]:
    """What makes each scheduler that may have left something, one by one: those that are enabled, and the others also
    where only their journals say that they ran (`sustain pages run`, `sustain packages run`). When another process has
    the journal, one that is enabled raises JournalBusy; the others are None: whoever runs them puts back itself."""
    directory = Path(config.agent.state_dir)
    memory, pages, packages = config.guest_memory, config.large_pages, config.packages
    if pages is None and any(
        (directory / f"{name}.journal").exists() for name in (LargePages.name, _LOOKING_AT_PAGES)
    ):
        pages = LargePagesSection()
    if packages is None and (directory / f"{Packages.name}.journal").exists():
        packages = PackagesSection()
    apart: list[tuple[AgentConfig, bool]] = []  # and whether it is enabled
    none = msgspec.structs.replace(config, guest_memory=None, large_pages=None, packages=None)
    if memory is not None:
        apart.append((msgspec.structs.replace(none, guest_memory=memory), True))
    if pages is not None:  # putting back needs nothing that counts
        pages = msgspec.structs.replace(pages, counting="none")
        apart.append((msgspec.structs.replace(none, large_pages=pages), config.large_pages is not None))
    if packages is not None:
        apart.append((msgspec.structs.replace(none, packages=packages), config.packages is not None))

    def make(one: AgentConfig, named: bool) -> AnyScheduler | None:
        try:
            return schedulers(one)[0]
        except JournalBusy:
            if not named:
                return None
            raise

    return [partial(make, *each) for each in apart]


def enabled(config: AgentConfig, where: str = "configuration") -> GuestMemorySection:
    """The section of the guest memory scheduler. Raises ConfigError when `where`, the configuration, has none."""
    if config.guest_memory is None:
        raise ConfigError(
            f"{where}: no scheduler is enabled", hint="add a section [guest_memory]; it may be empty"
        )
    return config.guest_memory


def guest_memory(config: AgentConfig, clock: Clock | None = None) -> GuestMemory:
    """The guest memory scheduler, which can look and decide, and not act. What it changes in order to look (a balloon's
    statistics, DAMON) is noted beside the agent's journal; where that cannot be, it is not changed. Raises ConfigError
    when it is not enabled."""
    section = enabled(config)
    changes: Changes
    try:
        changes = journal_of(config, _LOOKING)
    except JournalError as error:
        changes = Refused(error)
    found = GuestMemory(
        section.ways,
        section.policy,
        section.period_s,
        clock or SystemClock(),
        None,
        section.urgency,
        changes,
    )
    found.restore()  # what one that was killed has left
    return found


def large_pages(config: AgentConfig, clock: Clock | None = None) -> LargePages:
    """The large-page prioritiser, which can look and decide, and not act; DAMON, which it may need for that, is noted
    as `guest_memory` does. Raises ConfigError when it is not enabled."""
    section = config.large_pages
    if section is None:
        raise ConfigError("no [large_pages]", hint="add that section, with the processes that are meant")
    changes: Changes
    try:
        changes = journal_of(config, _LOOKING_AT_PAGES)
    except JournalError as error:
        changes = Refused(error)
    found = LargePages(section.whole, section.period_s, clock or SystemClock(), None, changes)
    found.restore()  # what one that was killed has left
    return found


def packages(config: AgentConfig, clock: Clock | None = None) -> Packages:
    """Power-aware placement, which can look and decide, and not act. It changes nothing in order to look. Raises
    ConfigError when it is not enabled."""
    section = config.packages
    if section is None:
        raise ConfigError("no [packages]", hint="add that section, with the groups that may be placed")
    return _packages(config, section, clock or SystemClock(), None)


def _packages(
    config: AgentConfig, section: PackagesSection, clock: Clock, journal: Journal | None
) -> Packages:
    try:
        sensor = packages_sensor(config, section, clock)
    except BaseException:
        if journal is not None:
            journal.close()
        raise
    actuator = None
    if journal is not None:
        actuator = Actuator(
            journal,
            Reach(sensor.found, libvirt=section.libvirt),
            without_cpuset=section.without_cpuset,
            memory_bytes_per_s=section.policy.memory_bytes_per_s,
        )
    return Packages(section.policy, section.period_s, sensor, actuator, journal)


def packages_sensor(config: AgentConfig, section: PackagesSection, clock: Clock) -> Sensor:
    """What looks for power-aware placement, with what was found out before. Raises ConfigError, HostError."""
    return Sensor(section.whole, clock, Path(config.agent.state_dir) / _FINDINGS)


def journal_of(config: AgentConfig, scheduler: str) -> Journal:
    """Its journal. Raises JournalError, JournalBusy."""
    directory = Path(config.agent.state_dir)
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError(
            f"{directory}: {error.strerror}",
            hint="agent.state_dir names a directory that the agent can write; the default is for root",
        ) from error
    return Journal(directory / f"{scheduler}.journal")
