"""Made hosts: trees of /proc, /sys and /dev as the kernel's documentation has them, in which a test lets time pass.

For tests of whatever reads the host with `root`: topology, idle states, time of processors, energy, performance
counters, registers, cgroups. A tree is small, so none is committed.

    host = hosts.intel(tmp_path, packages=2)          # or bare, registers_only, epyc, virtual
    idle = package_idle.Packages(topology.read(tmp_path), tmp_path, kernel=host.perf, clock=host.clock)
    host.advance(2.0, busy={0: 0.5}, residency={1: {"pc2": 0.9}}, watts={0: 60.0, 1: 40.0})
    host.take_offline(3)

What a tree cannot be is a seam: performance counters (`host.perf`, a `perf_events.Kernel`), the registers of a
processor, whose offsets overlap (`registers_pread` in the place of `os.pread`), and the clock (`host.clock`, in
nanoseconds). Nothing here models power or idleness: what is told to pass passes.
"""

import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sustain.host.perf_events import Reading

TSC_HZ = 2_100_000_000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ENERGY_RANGE_UJ = 262_143_328_850  # of a counter of 32 bits in units of 2**-14 J
_CORE_STATES = ("POLL", "C1", "C1E", "C6")
_RAPL_SCALE = 2.0**-32
_REGISTERS = {"pc2": 0x60D, "pc3": 0x3F8, "pc6": 0x3F9, "pc7": 0x3FA}
_TSC = 0x10
_CSTATE_EVENTS = {"c2": 0, "c3": 1, "c6": 2, "c7": 3, "c8": 4, "c9": 5, "c10": 6}
_POWER_EVENTS = {"cores": 1, "pkg": 2, "ram": 3, "gpu": 4, "psys": 5}
_MSR_BYTES = 8
_HSMP = struct.Struct("<IHHIIIIIIIIHxx")  # struct hsmp_message


@dataclass(frozen=True, slots=True)
class Model:
    """Which processor /proc/cpuinfo tells of."""

    vendor: str
    family: int
    model: int
    stepping: int
    name: str
    microcode: str


SKYLAKE = Model("GenuineIntel", 6, 85, 4, "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", "0x2007006")
SAPPHIRE_RAPIDS = Model("GenuineIntel", 6, 143, 8, "Intel(R) Xeon(R) Platinum 8490H", "0x2b000603")
HASWELL = Model("GenuineIntel", 6, 63, 2, "Intel(R) Xeon(R) CPU E5-2660 v3 @ 2.60GHz", "0x49")
ROME = Model("AuthenticAMD", 23, 49, 0, "AMD EPYC 7502 32-Core Processor", "0x830107b")
GENOA = Model("AuthenticAMD", 25, 17, 1, "AMD EPYC 9654 96-Core Processor", "0xa101148")


@dataclass
class Host:
    """Processors are numbered as usual: first threads of all packages, then second ones. `packages` and `cpus` are
    those of the whole host; those that are `offline` are left out of what the kernel shows."""

    root: Path
    packages: int = 2
    cores: int = 2  # of each package
    threads: int = 1  # of each core
    dies: int = 1  # of each package
    model: Model = SKYLAKE
    virtual: bool = False
    now_ns: int = 1_000_000_000_000
    gone: set[int] = field(default_factory=set)
    tsc: int = 10**12
    residency: dict[int, dict[str, int]] = field(
        default_factory=dict
    )  # counts of the TSC by package and state
    used_uj: dict[str, int] = field(default_factory=dict)  # by zone: "package-0", "package-0/dram", "psys"
    standing: bool = False  # counters of the hardware stand still, as under a hypervisor

    def __post_init__(self) -> None:
        self.perf = Perf(self)
        self._zones: dict[str, Path] = {}
        self._times: dict[int, list[float]] = {cpu: [0.0] * 10 for cpu in self.cpus}
        self._idle_us: dict[int, list[float]] = {}
        self._registers = False
        self.write("proc/cpuinfo", "")
        self.write("sys/devices/system/cpu/possible", f"0-{len(self.cpus) - 1}\n")
        self.write("sys/devices/system/cpu/present", f"0-{len(self.cpus) - 1}\n")
        self.dmi("Dell Inc.", "PowerEdge R740", "2.21.2")
        for node in range(self.packages):
            folder = f"sys/devices/system/node/node{node}"
            self.write(
                f"{folder}/distance", " ".join("10" if n == node else "21" for n in range(self.packages))
            )
            self.memory(node, 64 << 30, 32 << 30)
        self.write("sys/devices/system/node/online", f"0-{self.packages - 1}\n")
        self._show()

    # Who is where

    @property
    def cpus(self) -> range:
        return range(self.packages * self.cores * self.threads)

    def package_of(self, cpu: int) -> int:
        return cpu // self.cores % self.packages

    def die_of(self, cpu: int) -> int:
        return cpu % self.cores * self.dies // self.cores

    def cpus_of(self, package: int) -> tuple[int, ...]:
        """Those of a package that are online."""
        return tuple(cpu for cpu in self.cpus if self.package_of(cpu) == package and cpu not in self.gone)

    def clock(self) -> int:
        """The time that has passed here, in nanoseconds."""
        return self.now_ns

    # What there is

    def write(self, path: str, content: str) -> Path:
        """A file of the tree; descriptors of it see what it says from now on."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")
        return place

    def dmi(self, vendor: str, product: str, bios_version: str) -> None:
        folder = "sys/class/dmi/id"
        self.write(f"{folder}/sys_vendor", vendor + "\n")
        self.write(f"{folder}/product_name", product + "\n")
        self.write(f"{folder}/bios_version", bios_version + "\n")
        self.write(f"{folder}/bios_date", "02/19/2024\n")

    def memory(self, node: int, total_bytes: int, free_bytes: int) -> None:
        self.write(
            f"sys/devices/system/node/node{node}/meminfo",
            f"Node {node} MemTotal:       {total_bytes // 1024} kB\n"
            f"Node {node} MemFree:        {free_bytes // 1024} kB\n",
        )

    def cgroup(self, path: str, **files: str) -> Path:
        """A group of version 2; names of files have "_" for ".": cpuset_cpus="0-3", cgroup_procs="7"."""
        folder = f"sys/fs/cgroup/{path.strip('/')}"
        self.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
        for name, content in files.items():
            self.write(f"{folder}/{name.replace('_', '.', 1)}", content + "\n")
        return self.root / folder

    def idle_states(self, names: Iterable[str] = _CORE_STATES, driver: str = "intel_idle") -> None:
        """cpuidle, with these states from the least deep on."""
        self.write("sys/devices/system/cpu/cpuidle/current_driver", driver + "\n")
        self.write("sys/devices/system/cpu/cpuidle/current_governor", "menu\n")
        for cpu in self.cpus:
            self._idle_us[cpu] = [0.0 for _ in names]
            for number, name in enumerate(names):
                folder = f"sys/devices/system/cpu/cpu{cpu}/cpuidle/state{number}"
                latency_us = 0 if number == 0 else 2 * 8 ** (number - 1)
                said = {"name": name, "desc": name, "latency": latency_us, "residency": 4 * latency_us}
                counters = dict.fromkeys(("time", "usage", "above", "below", "rejected", "disable"), 0)
                for file, content in (said | counters).items():
                    self.write(f"{folder}/{file}", f"{content}\n")

    def powercap(self, parts: Iterable[str] = ("dram",), platform: bool = False) -> None:
        """RAPL zones of all packages (and dies), with these parts, and "psys"."""
        numbered = 0
        for package in range(self.packages):
            for die in range(self.dies):
                name = f"package-{package}" + (f"-die-{die}" if self.dies > 1 else "")
                self._zone(f"intel-rapl:{numbered}", name, name)
                for number, part in enumerate(parts):
                    self._zone(f"intel-rapl:{numbered}:{number}", part, f"{name}/{part}")
                numbered += 1
        if platform:
            self._zone(f"intel-rapl:{numbered}", "psys", "psys")

    def pmu(
        self, name: str, kind: int, events: Mapping[str, str], cpus: str = "", bits: str = "0-63"
    ) -> Path:
        """A source of performance counters; events as the kernel writes them, {"c2-residency": "event=0x00"}."""
        folder = f"sys/bus/event_source/devices/{name}"
        self.write(f"{folder}/type", f"{kind}\n")
        self.write(f"{folder}/format/event", f"config:{bits}\n")
        if cpus:
            self.write(f"{folder}/cpumask", cpus + "\n")
        for each, said in events.items():
            self.write(f"{folder}/events/{each}", said + "\n")
        return self.root / folder

    def counters(
        self, states: Iterable[str] = ("c2", "c6"), energies: Iterable[str] = ("pkg", "ram")
    ) -> None:
        """perf's `msr` (the TSC), `cstate_pkg` (or `cstate_die`) and `power`."""
        self.pmu("msr", 10, {"tsc": "event=0x00"})
        self.write("proc/sys/kernel/perf_event_paranoid", "2\n")
        dies = {(self.package_of(cpu), self.die_of(cpu)): cpu for cpu in reversed(self.cpus)}
        first = ",".join(str(cpu) for cpu in sorted(dies.values()))
        if states := tuple(states):
            name = "cstate_die" if self.dies > 1 else "cstate_pkg"
            self.pmu(
                name,
                20,
                {f"{each}-residency": f"event={_CSTATE_EVENTS[each]:#04x}" for each in states},
                first,
            )
        if energies := tuple(energies):
            events = {f"energy-{each}": f"event={_POWER_EVENTS[each]:#04x}" for each in energies}
            folder = self.pmu("power", 21, events, first, "0-7")
            for each in events:
                (folder / f"events/{each}.scale").write_text("2.3283064365386962890625e-10\n")
                (folder / f"events/{each}.unit").write_text("Joules\n")

    def registers(self, values: Mapping[int, int] | None = None) -> None:
        """/dev/cpu/N/msr, to be read by `registers_pread`: the TSC, the residencies, and these of all processors."""
        self._registers = True
        for cpu in self.cpus:
            self.write(f"dev/cpu/{cpu}/msr", "")
            for number, value in (values or {}).items():
                self.set_register(cpu, number, value)
        self._show_registers()

    def set_register(self, cpu: int, number: int, value: int) -> None:
        with (self.root / f"dev/cpu/{cpu}/msr").open("r+b") as file:
            os.pwrite(file.fileno(), value.to_bytes(_MSR_BYTES, "little"), _place(number))

    def hsmp(
        self, power_w: Mapping[int, float], c0_percent: Mapping[int, int]
    ) -> Callable[[int, int, bytearray], int]:
        """/dev/hsmp, that tells this of sockets: what to have in the place of `fcntl.ioctl`."""
        self.write("dev/hsmp", "")
        known = {0x04: {each: round(value * 1000) for each, value in power_w.items()}, 0x11: c0_percent}

        def ioctl(descriptor: int, request: int, message: bytearray) -> int:
            assert (len(message), request) == (44, 0xC02CF800), "HSMP_IOCTL_CMD of the kernel's header"
            os.fstat(descriptor)
            number, arguments, words, *_, socket = _HSMP.unpack(message)
            if number not in known or (arguments, words) != (0, 1):
                raise OSError(errno.ENOMSG, os.strerror(errno.ENOMSG))
            if socket not in known[number]:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            _HSMP.pack_into(message, 0, number, arguments, words, known[number][socket], *(0,) * 7, socket)
            return 0

        return ioctl

    # What happens

    def advance(
        self,
        seconds: float,
        busy: Mapping[int, float] | None = None,
        residency: Mapping[int, Mapping[str, float]] | None = None,
        watts: Mapping[int, float] | None = None,
        dram_watts: Mapping[int, float] | None = None,
    ) -> None:
        """Time passes, in which each processor was busy for that share (others idle, in their deepest state), each
        package was in its states for those shares ({1: {"pc2": 0.9}}), and used that power. Shares are of all dies
        alike, and watts are shared by them."""
        self.now_ns += round(seconds * 1e9)
        for cpu in self.cpus:
            if cpu in self.gone:
                continue
            share = (busy or {}).get(cpu, 0.0)
            self._times[cpu][0] += share * seconds * TICKS_PER_S
            self._times[cpu][3] += (1 - share) * seconds * TICKS_PER_S
            if cpu in self._idle_us:
                self._idle_us[cpu][-1] += (1 - share) * seconds * 1e6
        self.tsc += round(seconds * TSC_HZ)
        if not self.standing:
            for package, shares in (residency or {}).items():
                counts = self.residency.setdefault(package, {})
                for state, share in shares.items():
                    counts[state] = counts.get(state, 0) + round(share * seconds * TSC_HZ)
            for package in range(self.packages):
                self._use(f"package-{package}", "", (watts or {}).get(package, 0.0) * seconds)
                self._use(f"package-{package}", "/dram", (dram_watts or {}).get(package, 0.0) * seconds)
        self._show()

    def take_offline(self, *cpus: int) -> None:
        """They vanish from where the kernel shows those that are online; their idle states stay, and stand still."""
        self.gone.update(cpus)
        for cpu in cpus:
            shutil.rmtree(self.root / f"sys/devices/system/cpu/cpu{cpu}/topology")
            (self.root / f"dev/cpu/{cpu}/msr").unlink(missing_ok=True)
        self._show()

    def energy_uj(self, name: str) -> int:
        """What a zone has used in all: "package-0", "package-0/dram"; of packages of several dies, all of them."""
        package, _, part = name.partition("/")
        wanted = f"/{part}" if part else ""
        return sum(
            used
            for zone, used in self.used_uj.items()
            if zone.split("/")[0].split("-die-")[0] == package
            and zone.endswith(wanted)
            and ("/" in zone) == bool(part)
        )

    # How it is shown

    def _zone(self, folder: str, name: str, key: str) -> None:
        place = f"sys/class/powercap/{folder}"
        self.used_uj[key] = 5_000_000
        self.write(f"{place}/name", name + "\n")
        self.write(f"{place}/max_energy_range_uj", f"{ENERGY_RANGE_UJ}\n")
        self._zones[key] = self.write(f"{place}/energy_uj", f"{self.used_uj[key]}\n")
        self._zones[key].chmod(0o400)

    def _use(self, package: str, part: str, joules: float) -> None:
        for die in range(self.dies):
            key = package + (f"-die-{die}" if self.dies > 1 else "") + part
            self.used_uj[key] = self.used_uj.get(key, 0) + round(joules * 1e6 / self.dies)

    def _show(self) -> None:
        online = [cpu for cpu in self.cpus if cpu not in self.gone]
        self.write("sys/devices/system/cpu/online", ",".join(map(str, online)) + "\n")
        flags = "fpu tsc msr constant_tsc nonstop_tsc" + (" hypervisor" if self.virtual else "")
        blocks = []
        for cpu in online:
            folder = f"sys/devices/system/cpu/cpu{cpu}"
            self.write(f"{folder}/topology/physical_package_id", f"{self.package_of(cpu)}\n")
            self.write(f"{folder}/topology/die_id", f"{self.die_of(cpu)}\n")
            self.write(f"{folder}/topology/core_id", f"{cpu % self.cores}\n")
            for state, time_us in enumerate(self._idle_us.get(cpu, [])):
                self.write(f"{folder}/cpuidle/state{state}/time", f"{time_us:.0f}\n")
            blocks.append(
                f"processor\t: {cpu}\nvendor_id\t: {self.model.vendor}\ncpu family\t: {self.model.family}\n"
                f"model\t\t: {self.model.model}\nmodel name\t: {self.model.name}\n"
                f"stepping\t: {self.model.stepping}\nmicrocode\t: {self.model.microcode}\n"
                f"physical id\t: {self.package_of(cpu)}\nflags\t\t: {flags}\n"
            )
        self.write("proc/cpuinfo", "\n".join(blocks))
        for node in range(self.packages):
            cpus = ",".join(map(str, self.cpus_of(node)))
            self.write(f"sys/devices/system/node/node{node}/cpulist", cpus + "\n")
        lines = [f"cpu{cpu} " + " ".join(f"{each:.0f}" for each in self._times[cpu]) for cpu in online]
        self.write("proc/stat", "\n".join(["cpu  0 0 0 0 0 0 0 0 0 0", *lines, "intr 5 0 0", "ctxt 9", ""]))
        for key, path in self._zones.items():
            path.chmod(0o600)
            path.write_text(f"{self.used_uj[key] % ENERGY_RANGE_UJ}\n")
            path.chmod(0o400)
        if self._registers:
            self._show_registers()

    def _show_registers(self) -> None:
        for cpu in self.cpus:
            if cpu not in self.gone:
                self.set_register(cpu, _TSC, self.tsc)
                counts = self.residency.get(self.package_of(cpu), {})
                for state, number in _REGISTERS.items():
                    self.set_register(cpu, number, counts.get(state, 0))


class Perf:
    """Performance counters of a made host (`perf_events.Kernel`). `refused`, `unreadable`: the errno of
    every opening, and reading."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.refused: int | None = None
        self.unreadable: int | None = None
        self.grouped = True  # whether counters of different sources can be
        self.reads = 0
        self._last = 1000
        self._opened: dict[
            int, tuple[int, tuple[int, int, int], int, int]
        ] = {}  # (kind, config, cpu, leader)
        self._began: dict[int, tuple[int, int]] = {}  # (time, count)

    @property
    def open_count(self) -> int:
        return len(self._opened)

    def open(self, kind: int, config: tuple[int, int, int], cpu: int, leader: int) -> int:
        if self.refused is not None:
            raise OSError(self.refused, os.strerror(self.refused))
        if cpu in self._host.gone:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if leader >= 0 and not self.grouped:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._count(kind, config[0], cpu)
        self._last += 1
        self._opened[self._last] = (kind, config, cpu, self._last if leader < 0 else leader)
        return self._last

    def start(self, leader: int) -> None:
        for each, (kind, config, cpu, its_leader) in self._opened.items():
            if its_leader == leader:
                self._began[each] = (self._host.now_ns, self._count(kind, config[0], cpu))

    def read(self, descriptor: int, count: int) -> Reading:
        self.reads += 1
        if self.unreadable is not None:
            raise OSError(self.unreadable, os.strerror(self.unreadable))
        members = {each: said for each, said in self._opened.items() if said[3] == descriptor}
        assert len(members) == count, "a group is read as a whole"
        if any(cpu in self._host.gone for _, _, cpu, _ in members.values()):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        counts = tuple(
            self._count(kind, config[0], cpu) - self._began[each][1]
            for each, (kind, config, cpu, _) in members.items()
        )
        passed_ns = self._host.now_ns - self._began[descriptor][0]
        return Reading(counts, passed_ns, passed_ns)

    def close(self, descriptor: int) -> None:
        del self._opened[descriptor]

    def _count(self, kind: int, config: int, cpu: int) -> int:
        host, package = self._host, self._host.package_of(cpu)
        die = f"-die-{host.die_of(cpu)}" if host.dies > 1 else ""
        match kind:
            case 10:
                return host.tsc
            case 20:
                state = next(name for name, number in _CSTATE_EVENTS.items() if number == config)
                return host.residency.get(package, {}).get("p" + state, 0)
            case 21:
                part = next(name for name, number in _POWER_EVENTS.items() if number == config)
                zone = {"pkg": f"package-{package}{die}", "ram": f"package-{package}{die}/dram"}.get(
                    part, part
                )
                return round(host.used_uj.get(zone, 0) / 1e6 / _RAPL_SCALE)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def registers_pread(descriptor: int, size: int, offset: int) -> bytes:
    """In the place of `os.pread` for the registers of a made host, whose file keeps each by itself."""
    if not os.fstat(descriptor).st_nlink:  # it was taken offline
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return os.pread(descriptor, size, _place(offset))


def _place(number: int) -> int:
    return (number & 0xFFFF) * _MSR_BYTES


def bare(root: Path, packages: int = 2, cores: int = 2, threads: int = 1, dies: int = 1) -> Host:
    """Only topology, memory and /proc/stat."""
    return Host(root, packages, cores, threads, dies)


def intel(root: Path, packages: int = 2, cores: int = 2, threads: int = 2, dies: int = 1) -> Host:
    """A Xeon with everything: cpuidle, perf counters, registers and RAPL."""
    host = Host(root, packages, cores, threads, dies)
    host.idle_states()
    host.powercap()
    host.counters()
    host.registers({0xE2: 0x8402})
    return host


def registers_only(root: Path, packages: int = 2) -> Host:
    """A Xeon whose kernel has no PMU for idle states and no RAPL; its registers can be read."""
    host = Host(root, packages, threads=2)
    host.idle_states()
    host.registers({0xE2: 0x8402})
    return host


def epyc(root: Path, packages: int = 2) -> Host:
    """A Rome: idle states by ACPI, RAPL of packages alone, nothing that counts what a package does."""
    host = Host(root, packages, cores=4, threads=2, model=ROME)
    host.idle_states(("POLL", "C1", "C2"), "acpi_idle")
    host.powercap(parts=("core",))
    host.counters(states=(), energies=("pkg",))
    return host


def virtual(root: Path, packages: int = 2) -> Host:
    """A virtual machine that is told of counters and of RAPL, of which all stand still at zero."""
    host = Host(root, packages, virtual=True, standing=True, model=SAPPHIRE_RAPIDS)
    host.idle_states(("POLL", "haltpoll"), "haltpoll")
    host.powercap()
    host.counters()
    host.registers()
    for zone in host.used_uj:
        host.used_uj[zone] = 0
    host.advance(0)
    return host
