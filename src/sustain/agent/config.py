"""The agent's configuration file: TOML in, checked values out. docs/operating/agent.md has the table.

Used by `sustain agent`, `record`, `replay` and `memory`. The values themselves are the structs of those who use them
(a scheduler's policy, the ways to its guests); a key is the field's name without its unit, since the value has one:
`reservation = "1GiB"` is `reservation_bytes`, `period = "10s"` is `period_s`.

Rejected: msgspec's own conversion of the whole tree. It cannot say which guest's key is wrong, nor what was meant.
"""

import difflib
import ipaddress
import os
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from sustain.errors import ConfigError
from sustain.schedulers.guest_memory import host_state, urgency
from sustain.schedulers.guest_memory.config import GuestConfig, GuestsConfig, check
from sustain.schedulers.guest_memory.model import Policy
from sustain.schedulers.guest_memory.urgency import Urgency
from sustain.schedulers.large_pages import config as large_pages
from sustain.schedulers.large_pages.config import LargePagesConfig
from sustain.schedulers.large_pages.counting import Ways
from sustain.schedulers.large_pages.find import Wanted
from sustain.schedulers.large_pages.policy import Policy as LargePagesPolicy
from sustain.schedulers.packages import config as packages
from sustain.schedulers.packages.config import PackagesConfig
from sustain.schedulers.packages.find import Wanted as WantedGroup
from sustain.schedulers.packages.policy import Policy as PackagesPolicy
from sustain.units import parse_duration, parse_size

T = TypeVar("T", bound=msgspec.Struct)

DEFAULT_PATH = "/etc/sustain/agent.toml"
_RATE = "_bytes_per_s"  # `memory_per_s = "256MiB"` in the file


class AgentSection(msgspec.Struct, frozen=True, kw_only=True):
    """The agent itself."""

    listen: str = "127.0.0.1:9750"  # or unix:/PATH; "": nowhere
    state_dir: str = "/run/sustain"  # the journals; a reboot may lose it
    log: str = ""  # a file for what was done and why, a line of JSON each; "": none
    blind_after_s: float = 300.0
    hung_after_s: float = 120.0  # and ten periods of the scheduler


class GuestMemorySection(msgspec.Struct, frozen=True, kw_only=True):
    """The guest memory scheduler."""

    period_s: float = 10.0
    guests: tuple[GuestConfig, ...] = ()
    discover: bool = False
    timeout_s: float = 2.0
    statistics_period_s: int = 5
    urgency: Urgency = Urgency()
    policy: Policy = Policy()

    @property
    def ways(self) -> GuestsConfig:
        """How guests are reached."""
        return GuestsConfig(
            guests=self.guests,
            discover=self.discover,
            timeout_s=self.timeout_s,
            statistics_period_s=self.statistics_period_s,
        )


class LargePagesSection(msgspec.Struct, frozen=True, kw_only=True):
    """The large-page prioritiser."""

    period_s: float = 10.0
    counting: Ways = "auto"
    count_period_s: float | None = None
    keep: bool = False
    targets: tuple[Wanted, ...] = ()
    policy: LargePagesPolicy = LargePagesPolicy()

    @property
    def whole(self) -> LargePagesConfig:
        """What the scheduler wants to know."""
        return LargePagesConfig(
            targets=self.targets,
            counting=self.counting,
            count_period_s=self.count_period_s,
            keep=self.keep,
            policy=self.policy,
        )


class PackagesSection(msgspec.Struct, frozen=True, kw_only=True):
    """Power-aware placement."""

    period_s: float = 10.0
    groups: tuple[WantedGroup, ...] = ()
    metrics: dict[str, str] = {}
    metric_timeout_s: float = 5.0
    libvirt: str | None = None
    without_cpuset: Literal["refuse", "threads"] = "refuse"
    findings: str = ""
    policy: PackagesPolicy = PackagesPolicy()

    @property
    def whole(self) -> PackagesConfig:
        """What the scheduler wants to know."""
        fields = {name: getattr(self, name) for name in PackagesConfig.__struct_fields__}
        return PackagesConfig(**fields)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. A scheduler whose section is not there does not run."""

    agent: AgentSection = AgentSection()
    guest_memory: GuestMemorySection | None = None
    large_pages: LargePagesSection | None = None
    packages: PackagesSection | None = None


def load(path: str | os.PathLike[str]) -> AgentConfig:
    """Read and check the file. Raises ConfigError, which names the key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: {getattr(error, 'strerror', None) or error}",
            hint="--config FILE names the configuration; docs/operating/agent.md has an example",
        ) from error
    return parse(text, str(path))


def parse(text: str, where: str = "configuration") -> AgentConfig:
    """`load` of a text. Raises ConfigError."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: {error}", hint="the file is TOML: https://toml.io") from None
    found: AgentConfig = _value(AgentConfig, tree, where, "")
    _check(found, where)
    return _joined(found)


def _joined(config: AgentConfig) -> AgentConfig:
    """With what one scheduler has to know of another's policy: large pages go before a guest gives anything."""
    memory, pages = config.guest_memory, config.large_pages
    if memory is None or pages is None or pages.policy.aim_bytes is not None:
        return config
    aim_bytes = host_state.aim_bytes(memory.policy)
    if aim_bytes is None:
        return config
    policy = msgspec.structs.replace(pages.policy, aim_bytes=aim_bytes)
    return msgspec.structs.replace(config, large_pages=msgspec.structs.replace(pages, policy=policy))


def address(listen: str) -> tuple[str, int] | str | None:
    """(host, port), the path of a UNIX socket, or None for nowhere. Raises ConfigError for what others could reach."""
    if not listen:
        return None
    if listen.startswith("unix:"):
        return "/" + listen.removeprefix("unix:").lstrip("/")
    host, _, port = listen.rpartition(":")
    try:
        if not ipaddress.ip_address(host.strip("[]")).is_loopback:
            raise ConfigError(
                f"agent.listen: {host} can be reached from other hosts",
                hint="listen on 127.0.0.1:PORT, [::1]:PORT or unix:/PATH and put a proxy in front",
            )
        return host.strip("[]"), int(port)
    except ValueError:
        raise ConfigError(
            f"agent.listen: {listen!r} is not an address",
            hint="write 127.0.0.1:PORT, [::1]:PORT or unix:/PATH",
        ) from None


def _check(config: AgentConfig, where: str) -> None:
    memory, pages, placement = config.guest_memory, config.large_pages, config.packages
    try:
        address(config.agent.listen)
        if memory is not None:
            check(memory.ways)
            urgency.check(memory.urgency)
            host_state.check(memory.policy)
        if pages is not None:
            large_pages.check(pages.whole)
        if placement is not None:
            packages.check(placement.whole)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", hint=error.hint) from None
    if config.agent.hung_after_s <= 0:
        raise ConfigError(f"{where}: agent.hung_after: must be a time", hint="2m is usual")
    for name, section in (("guest_memory", memory), ("large_pages", pages), ("packages", placement)):
        if section is not None and section.period_s < 1:
            raise ConfigError(f"{where}: {name}.period: less than a second", hint="10s is a good period")
    if memory is not None and not memory.discover:
        known = [guest.name for guest in memory.guests]
        for name in memory.policy.guests:
            if name not in known:
                raise _unknown(where, f"guest_memory.policy.guests.{name}", "guest", name, known)


def _value(kind: Any, value: Any, where: str, path: str, unit: str = "") -> Any:
    """`value` as `kind`; `path` is where it lies in the file."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(kind, value, where, path)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in inner if each is not type(None))  # TOML has no null
        return _value(kind, value, where, path, unit)
    if origin is tuple and inner[1:] == (...,) and isinstance(value, list):
        return tuple(_value(inner[0], each, where, f"{path}[{at}]", unit) for at, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: _value(inner[1], each, where, f"{path}.{name}", unit) for name, each in value.items()}
    try:
        if unit == "_bytes":
            value = parse_size(value, path)
        elif unit == "_s":
            value = parse_duration(value, path)
            value = int(value) if value.is_integer() else value
        return msgspec.convert(value, kind)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}", hint=error.hint) from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {path}: {error}", hint="docs/operating/agent.md has the table") from None


def _struct(kind: type[T], value: Any, where: str, path: str) -> T:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {path} is not a table", hint=f"write [{path}] and its keys below")
    fields = {_key(field.name): field for field in msgspec.structs.fields(kind)}
    found = {}
    for key, each in value.items():
        below = f"{path}.{key}" if path else key
        if key not in fields:
            raise _unknown(where, below, "key", key, list(fields))
        field = fields[key]
        found[field.name] = _value(field.type, each, where, below, _unit(field.name))
    for key, field in fields.items():
        if field.required and field.name not in found:
            raise ConfigError(
                f"{where}: {path}.{key} is missing", hint="docs/operating/agent.md has the table"
            )
    return kind(**found)


def _key(field: str) -> str:
    if field.endswith(_RATE):
        return field.removesuffix(_RATE) + "_per_s"
    return field.removesuffix("_bytes").removesuffix("_s")


def _unit(field: str) -> str:
    """In which `_value` reads it: a size, a time or a bare number."""
    return "_bytes" if field.endswith(_RATE) else field.removeprefix(_key(field))


def _unknown(where: str, path: str, what: str, name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there is: {', '.join(known) or 'none'}"
    return ConfigError(f"{where}: {path}: no such {what}", hint=hint)
