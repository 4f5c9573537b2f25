"""QEMU's command lines, as people and libvirt write them, and a real one."""

import os
from pathlib import Path

import pytest

from sustain.host.processes import Identity, identify
from sustain.host.qemu import Found, discover, parse

WHO = Identity(42, 7)
LIBVIRT = (
    "-name guest=web,debug-threads=on -uuid 3534ac6d-3235-4d0b-81e4-45be85b0d4a5 -m 4096 "
    "-chardev socket,id=charmonitor,fd=34,server=on,wait=off -mon chardev=charmonitor,id=monitor,mode=control "
    "-chardev socket,id=charchannel0,path=/run/libvirt/agent,server=on,wait=off "
    '-device {"driver":"virtserialport","bus":"v.0","nr":1,"chardev":"charchannel0","name":"org.qemu.guest_agent.0"}'
)


@pytest.mark.parametrize(
    ("words", "name", "qmp", "agent", "managed"),
    [
        ("-m 1G", "qemu-42", None, None, False),
        ("-name a -qmp unix:/run/a,server=on,wait=off", "a", "/run/a", None, False),
        ("--name guest=a,process=x --qmp unix:a.qmp,server", "a", "/home/me/a.qmp", None, False),
        ("-qmp tcp:localhost:4444,server -name a", "a", None, None, False),
        ("-chardev socket,id=m,path=/m,server=on -mon chardev=m,mode=control", "qemu-42", "/m", None, False),
        ("-chardev socket,id=m,path=/m,server=on -mon chardev=m,mode=readline", "qemu-42", None, None, False),
        ("-chardev socket,path=/x,,y,id=a -device virtserialport,chardev=a,name=org.qemu.guest_agent.0",
         "qemu-42", None, "/x,y", False),
        ("-device virtserialport,chardev=none,name=org.qemu.guest_agent.0", "qemu-42", None, None, False),
        (LIBVIRT, "web", None, "/run/libvirt/agent", True),
        ("-name", "qemu-42", None, None, False),
        ("-device {broken", "qemu-42", None, None, False),
    ],
)  # fmt: skip
def test_a_command_line(words: str, name: str, qmp: str | None, agent: str | None, managed: bool) -> None:
    uuid = "3534ac6d-3235-4d0b-81e4-45be85b0d4a5" if "-uuid" in words else None
    assert parse(WHO, words.split(), "/home/me") == Found(WHO, name, uuid, qmp, agent, managed)


def test_a_real_one(qemu: tuple[str, int]) -> None:
    path, pid = qemu
    found = [each for each in discover() if each.who.pid == pid]
    assert found == [
        Found(identify(pid) or WHO, f"qemu-{pid}", None, path, str(Path(path).with_name("agent")))
    ]


def test_what_is_none(tmp_path: Path) -> None:
    for pid, line in (("1", b"/usr/bin/qemu-img\0create\0"), ("2", b""), ("3", b"vi\0qemu-system-x86_64\0")):
        folder = tmp_path / "proc" / pid
        folder.mkdir(parents=True)
        (folder / "cmdline").write_bytes(line)
        (folder / "stat").write_text(f"{pid} (x) S " + " ".join("0" for _ in range(30)))
        os.symlink("/", folder / "cwd")
    assert discover(tmp_path) == []
