"""Power sources by URL: `nut://HOST[:PORT]/UPS`, `acpi:`, `file:///PATH`. Each gives one reading at a time, and
never raises for what may pass: a source that cannot be asked now gives a reading with the problem.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sustain.clock import Clock
from sustain.errors import ConfigError, PowerSourceError
from sustain.host import nut, power_supply
from sustain.powerfail.readings import PowerReading, from_nut, number, unknown

_HINT = "write nut://HOST[:PORT]/UPS, acpi: or file:///PATH"


class PowerSource(ABC):
    """Something that knows what supplies this host."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = url
        self._clock = clock

    def read(self) -> PowerReading:
        """One look. A source that cannot be asked, or not be believed, is a reading with a problem."""
        try:
            return self._read()
        except PowerSourceError as error:
            return unknown(self._clock.boottime_ns(), str(error))

    @abstractmethod
    def _read(self) -> PowerReading:
        """Raises PowerSourceError."""

    @property
    def counted(self) -> bool | None:
        """Whether the source waits for this host before the power is cut; None: it waits for nobody."""
        return None

    def log_in(self) -> None:  # noqa: B027 - most wait for nobody
        """Be waited for. Raises PowerSourceError."""

    def log_out(self) -> None:  # noqa: B027 - likewise
        """Be waited for no more: as far as this host is concerned, the power may be cut."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """It is not asked any more. upsd is told so, if this host had logged in there."""


class NutSource(PowerSource):
    """A UPS behind an upsd. The connection is made when it is needed, and made anew after an error."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        host: str,
        port: int,
        ups: str,
        *,
        timeout_s: float,
        tls: bool,
        login: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(url, clock)
        self._host, self._port, self._ups = host, port, ups
        self._timeout_s, self._tls = timeout_s, tls
        self._login = login
        self._logged_in = False
        self._client: nut.NutClient | None = None

    @property
    def counted(self) -> bool | None:
        return None if self._login is None else self._logged_in

    def log_in(self) -> None:
        if self._login is None or self._logged_in:
            return
        try:
            self.client().login(self._ups, *self._login)
        except PowerSourceError:
            self._drop()  # half a login: the next one begins anew
            raise
        self._logged_in = True

    def log_out(self) -> None:
        if self._client is not None:
            self._client.logout()
        self._client, self._logged_in = None, False

    def _drop(self) -> None:
        """A login ends with its connection."""
        if self._client is not None:
            self._client.close()
        self._client, self._logged_in = None, False

    def client(self) -> nut.NutClient:
        """The connection. Raises PowerSourceError."""
        if self._client is None:
            client = nut.NutClient(self._host, self._port, timeout_s=self._timeout_s)
            try:
                if not client.start_tls() and self._tls:
                    raise PowerSourceError(
                        f"{self._host}:{self._port}: this upsd has no TLS",
                        hint="leave out ?tls=1, or set CERTFILE there",
                    )
            except PowerSourceError:
                client.close()
                raise
            self._client = client
        return self._client

    def _read(self) -> PowerReading:
        try:
            variables = self.client().variables(self._ups)
        except nut.NutRefused:
            raise  # the connection is as good as before
        except PowerSourceError:
            self._drop()
            raise
        return from_nut(variables, self._clock.boottime_ns())

    def close(self) -> None:
        self.log_out()


class AcpiSource(PowerSource):
    """The batteries and adapters of this host."""

    def __init__(self, url: str, clock: Clock, root: Path = Path("/")) -> None:
        super().__init__(url, clock)
        self._root = root

    def _read(self) -> PowerReading:
        found = power_supply.read(self._root)
        now_ns = self._clock.boottime_ns()
        if found.on_battery is None:
            return unknown(now_ns, f"the kernel does not say what supplies this host ({found.status})")
        return PowerReading(
            now_ns,
            on_battery=found.on_battery,
            charge_percent=found.charge_percent,
            runtime_s=found.runtime_s,
            status=found.status,
        )


class FileSource(PowerSource):
    """A file that a script of the operator's writes: `NAME: VALUE` lines with the names of Network UPS Tools
    (`ups.status: OB`, `battery.runtime: 240`). Older than `max_age_s`, it is not believed."""

    def __init__(self, url: str, clock: Clock, path: Path, max_age_s: float | None) -> None:
        super().__init__(url, clock)
        self._path = path
        self._max_age_s = max_age_s

    def _read(self) -> PowerReading:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
            age_s = self._clock.realtime_ns() / 1e9 - self._path.stat().st_mtime
        except OSError as error:
            raise PowerSourceError(f"{self._path}: {error.strerror}", hint="") from None
        if self._max_age_s is not None and age_s > self._max_age_s:
            raise PowerSourceError(
                f"{self._path}: written {age_s:.0f} s ago, believed for {self._max_age_s:g} s"
            )
        pairs = (line.partition(":") for line in text.splitlines() if line.strip() and line[0] != "#")
        return from_nut({name.strip(): value.strip() for name, _, value in pairs}, self._clock.boottime_ns())


def open_source(
    url: str, clock: Clock, *, timeout_s: float = 5.0, login: tuple[str, str] | None = None
) -> PowerSource:
    """The source that `url` names. Nothing is asked of it yet. Raises ConfigError.

    `login`: user and password of upsd, for `log_in`. Options: `nut://…?tls=1` refuses an upsd without TLS; `file:///…?max_age=SECONDS`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"power source {url!r}: {error}", hint=_HINT) from None
    options = dict(each.partition("=")[::2] for each in parts.query.split("&") if each)
    path = unquote(parts.path)
    source: PowerSource
    if parts.scheme == "nut" and parts.hostname and path.strip("/"):
        tls = options.pop("tls", "0")
        if tls not in ("0", "1"):
            raise ConfigError(f"power source {url!r}: tls is 0 or 1", hint=_HINT)
        where = (parts.hostname, port or nut.PORT, path.strip("/"))
        source = NutSource(url, clock, *where, timeout_s=timeout_s, tls=tls == "1", login=login)
    elif parts.scheme == "acpi" and not path and not parts.netloc:
        source = AcpiSource(url, clock)
    elif parts.scheme == "file" and path.startswith("/") and not parts.netloc:
        max_age = options.pop("max_age", None)
        if max_age is not None and number(max_age) is None:
            raise ConfigError(f"power source {url!r}: max_age is a number of seconds", hint=_HINT)
        source = FileSource(url, clock, Path(path), number(max_age))
    else:
        raise ConfigError(f"power source {url!r} is not known", hint=_HINT)
    if login is not None and not isinstance(source, NutSource):
        raise ConfigError(f"power source {url!r} knows no users", hint="only nut:// has --power-user")
    if options:
        raise ConfigError(f"power source {url!r}: unknown option {min(options)!r}", hint=_HINT)
    return source
