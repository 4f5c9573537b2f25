"""A region as its supervisor handles it: which save is here, who may open it, the verbs that ship and receive it.

Positions. A store counts bytes of its log; a region counts *seals*. While its program runs, a region's `end` is the
number that its next seal will have, and a destination has `acked` it once it holds that seal. So "held everywhere"
means the same for both, and the decisions are the same.

`PATH.region` says which epoch was opened here last, and with which number; it is written before the program starts.
What lies in the region directory is what a primary sends here; the newer of the two, by (epoch, number), is what this
host has. A host's own region wins a tie: it need not be restored.

No lease reaches into memory that an unmodified program maps: it is ended in time by the supervisor, and destinations
refuse an older epoch, but nothing stops its stores into its own region.
"""

import contextlib
import json
import os
import signal
import stat
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sustain import wholefile
from sustain.clock import Clock
from sustain.errors import RegionError, StoreFenced, StoreIOError, SustainError
from sustain.failover.custodian.base import Custodian, Opened, budget_words
from sustain.failover.lease.record import LeaseGrant
from sustain.failover.types import DestinationView, PowerView, StoreView
from sustain.host.processes import Identity, kill
from sustain.powerfail.budget import BudgetPolicy
from sustain.powerfail.regions import identity, marker, track
from sustain.powerfail.regions.manifest import Manifest, Seal, decode
from sustain.powerfail.regions.medium import open_medium
from sustain.powerfail.regions.restore import restore
from sustain.powerfail.regions.sink import open_source
from sustain.powerfail.regions.status import read_json
from sustain.replication.credentials import NO_CREDENTIALS, CredentialFiles
from sustain.units import to_ns

_POWER_EVERY_NS = to_ns(0.2)
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class RegionOptions:
    """How a region is found, made, tracked and frozen."""

    region: str  # its path
    name: str
    directory: str  # where it is received
    size: int | None = None  # bytes of a file that is made where there is none
    track: str = "auto"
    freeze: str = "signal"
    rate: int | None = None  # bytes per second of pre-copying


@dataclass(frozen=True, slots=True)
class _Own:
    """`PATH.region`: what was opened here last."""

    uuid: str
    name: str
    size_bytes: int
    epoch: int
    number: int  # of the seal that comes next, or of the last one
    newest_epoch: int
    format: int = _FORMAT


class RegionCustodian(Custodian):
    """A region; `path` is what the supervisor's own files lie beside (for a device not in /dev)."""

    has_door = False
    follows_command = True

    def __init__(
        self,
        path: str,
        host: str,
        clock: Clock,
        options: RegionOptions,
        *,
        listen: str | None,
        peers: tuple[str, ...],
        files: CredentialFiles,
        budget: BudgetPolicy | None = None,
    ) -> None:
        self.path = path
        self._host = host
        self._clock = clock
        self._options = options
        self._region = options.region
        self._listen = listen
        self._peers = peers
        self._files = files
        self._budget = budget
        self._own_path = Path(f"{path}.region")
        self._status_path = Path(f"{path}.region.json")
        self._power_path = Path(f"{path}.power.json")
        self._manifest_path = Path(options.directory, options.name, "manifest")
        self._received: tuple[tuple[int, int, int], Manifest] | None = None
        self._power: tuple[str, float | None] | None = None
        self._power_ns = 0
        self._told: dict[int, Identity] = {}  # pre-copiers that were told something: by signal

    # looking

    def look(self) -> tuple[StoreView | None, tuple[DestinationView, ...]]:
        try:
            own, received = self._own(), self._manifest()
        except SustainError as error:
            return StoreView("", 0, 0, None, problem=str(error), prefix=False), ()
        if own is None and received is None:
            return None, ()
        view = _received_view(received) if received is not None else None
        if own is not None and (view is None or not _newer(view, own)):
            return self._own_view(own, received)
        return view, ()

    def _own_view(
        self, own: _Own, received: Manifest | None
    ) -> tuple[StoreView, tuple[DestinationView, ...]]:
        newest = max(own.newest_epoch, received.epoch if received is not None else 0)
        status = self._status(own.epoch)
        number = status.get("seal") if status else None
        frozen = bool(status) and status.get("phase") in ("final", "sealed")
        end = own.number if number is None else int(number)
        problem = "" if os.path.exists(self._region) else f"{self._region} has gone"
        if marker.path_of(self._region).exists():
            problem = f"{self._region} is only half restored"
        view = StoreView(
            own.uuid,
            max(newest, own.epoch),
            own.epoch,
            end,
            fence_epoch=newest if newest > own.epoch else 0,
            problem=problem,
            prefix=False,
            frozen=frozen,
        )
        # What was written since the last look counts as well, while the program runs.
        fresh = 0 if frozen else status.get("dirty_bytes") or 0
        return view, tuple(_destination(each, fresh) for each in status.get("destinations", ()))

    def _status(self, epoch: int) -> Mapping[str, Any]:
        """What the pre-copier of this epoch says; nothing when there is none."""
        held = read_json(self._status_path)
        return held if held is not None and held.get("epoch") == epoch else {}

    def _speaker(self) -> int | None:
        """Whose status file it is."""
        pid = (read_json(self._status_path) or {}).get("pid")
        return pid if isinstance(pid, int) else None

    def _own(self) -> _Own | None:
        try:
            held = json.loads(self._own_path.read_text(encoding="utf-8"))
            own = _Own(**held)
        except FileNotFoundError:
            return self._restored_by_hand()
        except OSError as error:
            raise StoreIOError(f"{self._own_path}: {error.strerror}", hint="it must be readable") from None
        except (ValueError, TypeError):
            raise RegionError(
                f"{self._own_path}: damaged", hint="if this host need not know its region, delete the file"
            ) from None
        if own.format != _FORMAT:
            raise RegionError(f"{self._own_path}: of another version", hint="run one version on all hosts")
        return own

    def _restored_by_hand(self) -> _Own | None:
        """What `sustain restore` has put here, as a host that was never part of the workload holds it."""
        known = identity.load(self._region)
        if known is None or known.number == 0 or not os.path.exists(self._region):
            return None
        return _Own(known.uuid, known.name, 0, known.epoch, known.number, known.epoch)

    def _manifest(self) -> Manifest | None:
        """What was received, as far as it goes; read again when the file is another."""
        try:
            found = self._manifest_path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._received is None or self._received[0] != seen:
                data = self._manifest_path.read_bytes()
                self._received = (seen, decode(data, str(self._manifest_path)))
        except FileNotFoundError:
            self._received = None
            return None
        except OSError as error:
            raise StoreIOError(
                f"{self._manifest_path}: {error.strerror}", hint="it must be readable"
            ) from None
        return self._received[1]

    # the data path

    def set_deadline(self, grant: LeaseGrant) -> None:
        """Nothing in the data path knows of leases: see the module."""

    def close_epoch(self, epoch: int) -> None:
        """As `set_deadline`: the program is down when this is asked."""

    def set_power(self, power: PowerView | None) -> None:
        said = ("", None) if power is None else (str(power.power), power.usable_s)
        now_ns = self._clock.boottime_ns()
        same = self._power is not None and self._power[0] == said[0]
        if same and (said == self._power or now_ns - self._power_ns < _POWER_EVERY_NS):
            return
        if power is None:
            with contextlib.suppress(FileNotFoundError):
                self._power_path.unlink()
        else:
            data = {"usable_s": power.usable_s, "state": said[0], "at_boottime_ns": now_ns}
            _replace(self._power_path, data, durable=False)
        self._power, self._power_ns = said, now_ns

    # opening

    def create(self) -> None:
        """The first region: what lies at the path already, or zeros."""
        if not os.path.exists(self._region):
            if self._options.size is None:
                raise StoreIOError(
                    f"{self._region}: there is no such file",
                    hint="make it, or say how large it shall be: --size 4GiB",
                )
            with open(self._region, "xb") as file:
                os.truncate(file.fileno(), self._options.size)
                os.fsync(file.fileno())
        known = identity.load(self._region) or identity.new(self._options.name)
        identity.store(self._region, known)
        with open_medium(self._region) as medium:
            size_bytes = medium.size_bytes
        own = _Own(known.uuid, self._options.name, size_bytes, 1, known.number + 1, 1)
        _replace(self._own_path, asdict(own), durable=True)

    def set_aside(self) -> str:
        raise RegionError(
            f"{self._region}: it is of another workload", hint=f"if it is not needed, delete {self._own_path}"
        )

    def promote(self, epoch: int, still_ours: Callable[[], bool]) -> Opened:
        own, received = self._own(), self._manifest()
        seal = None if received is None else received.seal
        if seal is not None and received is not None and (own is None or _newer_seal(seal, own)):
            source = open_source(
                f"file://{os.path.abspath(self._options.directory)}",
                credentials=NO_CREDENTIALS,
                name=self._options.name,
            )
            with source:
                restore(source, self._region)
            held = seal.number
            region = received.identity
            own = _Own(
                str(uuid.UUID(bytes=region.uuid)),
                region.name,
                region.size_bytes,
                seal.epoch,
                seal.number,
                received.epoch,
            )
        elif own is not None:
            held = own.number
        else:
            raise RegionError(
                f"{self._region}: nothing that was saved whole is here", hint="see `sustain status`"
            )
        if not still_ours():
            raise StoreFenced(f"{self._region}: the lease ran out before epoch {epoch} could begin")
        number = max(own.number, 0 if received is None else received.last_number) + 1
        opened = _Own(own.uuid, own.name, own.size_bytes, epoch, number, epoch)
        with contextlib.suppress(FileNotFoundError):
            self._status_path.unlink()  # of an earlier epoch
        _replace(self._own_path, asdict(opened), durable=True)
        return Opened(held, None, number, None, None)

    # children

    def environment(self) -> dict[str, str]:
        return {"SUSTAIN_REGION": self._region, **track.environment(self._region, self._options.track)}

    def shipper(self, epoch: int, command_pid: int | None) -> list[str]:
        own = self._own()
        words = ["ship", "--region", self._region, "--region-name", self._options.name, "--name", self._host]
        words += ["--epoch", str(epoch), "--status", str(self._status_path)]
        if own is not None:
            words += ["--region-uuid", uuid.UUID(own.uuid).hex, "--seal-number", str(own.number)]
        words += ["--power-file", str(self._power_path)]
        words += ["--track", self._options.track, "--freeze", self._options.freeze]
        if command_pid is not None:
            words += ["--pids-of", str(command_pid)]
        if self._options.rate is not None:
            words += ["--rate", str(self._options.rate)]
        words += budget_words(self._budget)
        words += [word for peer in self._peers for word in ("--peer", peer)]
        return [*words, *self._files.words()]

    def receiver(self) -> list[str]:
        assert self._listen is not None
        words = ["receive", "--region-dir", self._options.directory, "--region-name", self._options.name]
        words += ["--name", self._host, "--listen", self._listen]
        return [*words, *self._files.words()]

    def evacuate(self, shipper: Identity | None) -> None:
        self._tell(shipper, signal.SIGUSR1)

    def thaw(self, shipper: Identity | None, command: Identity | None) -> None:
        self._tell(shipper, signal.SIGUSR2)
        if command is not None and self._options.freeze == "signal":
            kill(command, signal.SIGCONT, group=True)  # also when whoever froze it has died

    def _tell(self, shipper: Identity | None, number: signal.Signals) -> None:
        """Once each pre-copier: a signal is an order, not a state. Not before it has said that it is there: until its
        handlers are set a signal would end it."""
        if shipper is None or self._told.get(number) == shipper or self._speaker() != shipper.pid:
            return
        if kill(shipper, number):
            self._told = {int(number): shipper}

    def close(self) -> None:
        """Nothing is kept open."""


def _received_view(manifest: Manifest) -> StoreView:
    seal, region = manifest.seal, str(uuid.UUID(bytes=manifest.identity.uuid))
    if seal is None:
        problem = "a region is being received, it is not sealed"
        return StoreView(region, manifest.epoch, 0, None, problem=problem, prefix=False)
    return StoreView(region, manifest.epoch, seal.epoch, seal.number, prefix=False)


def _newer(view: StoreView, own: _Own) -> bool:
    return (view.log_epoch, view.end or 0) > (own.epoch, own.number)


def _newer_seal(seal: Seal, own: _Own) -> bool:
    return (seal.epoch, seal.number) > (own.epoch, own.number)


def _destination(held: Mapping[str, Any], fresh_bytes: int) -> DestinationView:
    behind = held.get("behind_bytes")
    return DestinationView(
        held["url"],
        held["state"],
        held["acked"],
        bool(held.get("required", False)),
        held["bandwidth_bytes_per_s"],
        None if behind is None else int(behind) + fresh_bytes,
        tuple((first, count) for first, count in held.get("missing_pages", ())),
        bool(held.get("missing_more", False)),
        seals=True,
    )


def _replace(path: Path, data: Mapping[str, Any], *, durable: bool) -> None:
    """Raises StoreIOError."""
    try:
        wholefile.replace(path, json.dumps(data).encode() + b"\n", durable=durable)
    except OSError as error:
        raise StoreIOError(
            f"{path}: {error.strerror}",
            hint="the region's directory must be writable",
            errno=error.errno,
        ) from error


def is_device(path: str) -> bool:
    """Whether a region is a device, beside which no file can lie in /dev for long."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
    return False
