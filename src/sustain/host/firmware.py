"""What this host is: its model, firmware, processor and microcode, and whether it is a virtual machine.

/sys/class/dmi/id and /proc/cpuinfo. Used by power-aware placement, which keeps what it has found out about idle states
per host and firmware: another board, BIOS or microcode may behave otherwise, and what was found has to be found anew. A
setting of the firmware that somebody changes is not seen by this; what was found is also given an age by who keeps it.
"""

import hashlib
from dataclasses import astuple, dataclass
from pathlib import Path

from sustain.errors import HostError
from sustain.host import files

_KEY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """Words as the host gives them; "": it does not say."""

    vendor: str
    product: str
    bios_version: str
    bios_date: str
    cpu_vendor: str  # "GenuineIntel", "AuthenticAMD"
    cpu_family: int | None
    cpu_model: int | None
    cpu_stepping: int | None
    microcode: str  # of all processors, if they differ
    cpu_name: str
    virtual: bool  # there is a hypervisor below

    @property
    def key(self) -> str:
        """Names host model, firmware and microcode alike, in 16 hexadecimal digits."""
        words = "\0".join(str(each) for each in astuple(self))
        return hashlib.sha256(words.encode()).hexdigest()[:_KEY_DIGITS]

    @property
    def title(self) -> str:
        """For people: "Dell Inc. PowerEdge R640, BIOS 2.10.2, Intel(R) Xeon(R) Gold 6130, microcode 0x2006e05"."""
        host = " ".join(each for each in (self.vendor, self.product) if each) or "unknown host"
        parts = [host, self.bios_version and f"BIOS {self.bios_version}", self.cpu_name]
        parts += [self.microcode and f"microcode {self.microcode}", "virtual machine" if self.virtual else ""]
        return ", ".join(each for each in parts if each)


def identify(root: Path = Path("/")) -> Identity:
    """Raises HostError."""
    path = root / "proc/cpuinfo"
    content = files.text(path)
    if content is None:
        raise HostError(f"{path}: not there", hint="is /proc mounted?")
    cpus = [_fields(each) for each in content.split("\n\n") if "processor" in each]
    first = cpus[0] if cpus else {}
    dmi = root / "sys/class/dmi/id"
    return Identity(
        vendor=_word(dmi / "sys_vendor"),
        product=_word(dmi / "product_name"),
        bios_version=_word(dmi / "bios_version"),
        bios_date=_word(dmi / "bios_date"),
        cpu_vendor=first.get("vendor_id", ""),
        cpu_family=files.counted(first.get("cpu family", "")),
        cpu_model=files.counted(first.get("model", "")),
        cpu_stepping=files.counted(first.get("stepping", "")),
        microcode=", ".join(sorted({word for each in cpus if (word := each.get("microcode", ""))})),
        cpu_name=first.get("model name", ""),
        virtual="hypervisor" in first.get("flags", "").split(),
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _word(path: Path) -> str:
    return " ".join((files.text(path) or "").split())
