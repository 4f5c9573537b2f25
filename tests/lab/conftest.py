"""What every lab test needs: kernels to boot. A machine that could have them and has not is a failure, not a skip.

`make test` has run `scripts/setup-debian.sh test` before, which installs them as root on Debian. Where that cannot
be (another distribution, no root) the tests are skipped with the reason, except when `CI` is set.
"""

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import guests, vm


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


def boot_kernel(series: str, scratch: Path) -> vm.Kernel:
    """The kernel of the series, or the reason why this machine cannot boot one."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the lab emulates x86_64 machines only; this is {platform.machine()}")
    reason = vm.unavailable(series)
    if reason is not None:
        pytest.skip(reason)
    with needed():
        return vm.kernel(series, scratch)


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """What the lab is made of: where it could be set up and was not, that is a failure."""
    try:
        yield
    except vm.LabError as error:
        could = os.geteuid() == 0 and shutil.which("apt-get") is not None
        if could or os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kernel(scratch: Path) -> vm.Kernel:
    """Linux 6.12: PAGEMAP_SCAN, asynchronous write protection, DAX."""
    return boot_kernel("6.12", scratch)


@pytest.fixture(scope="session")
def older_kernel(scratch: Path) -> vm.Kernel:
    """Linux 6.1, which has no PAGEMAP_SCAN."""
    return boot_kernel("6.1", scratch)


@pytest.fixture(scope="session")
def guest_images(kernel: vm.Kernel, scratch: Path) -> guests.Images:
    """What memory guests boot."""
    with needed():
        return guests.images(kernel, scratch)


@pytest.fixture
def boot_guest(guest_images: guests.Images) -> Iterator[Callable[..., guests.GuestVm]]:
    """A booted guest for each call, with the options of `GuestVm`; all end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda name, **options: stack.enter_context(guests.GuestVm(name, guest_images, **options))


@pytest.fixture
def boot_guests(guest_images: guests.Images) -> Iterator[Callable[..., tuple[guests.GuestVm, ...]]]:
    """Several at once, each by its options."""
    with contextlib.ExitStack() as stack:

        def start(*options: dict[str, Any]) -> tuple[guests.GuestVm, ...]:
            made = tuple(guests.GuestVm(images=guest_images, **each) for each in options)
            stack.enter_context(guests.boot(*made))
            return made

        yield start


@pytest.fixture
def no_host_swap() -> Iterator[None]:
    """This host has no swap while the test runs; where it has some of its own, the test is skipped."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(guests.host_without_swap())
        except vm.LabError as error:
            pytest.skip(str(error))
        yield
