#!/usr/bin/env bash
# A kernel with CONFIG_IDLE_PAGE_TRACKING, which Debian's have not, for tests/lab: built from Debian's source of Linux
# 6.12, with only what a guest of the lab needs, and kept in .lab/6.12-page-idle. Some five minutes on two processors.
#
#   scripts/build-page-idle-kernel.sh
#
# Does nothing when it is there. Safe to be ended at any moment: what was compiled is used the next time. Needs root
# only when a package has to be installed.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lab=$top/.lab
name=6.12-page-idle
work=$lab/build-$name
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

fail() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 1; }

# What the guest is: a processor, a console, the shared root over 9p, a temporary file system over it.
machine="64BIT SMP PRINTK BUG TTY SERIAL_8250 SERIAL_8250_CONSOLE UNIX98_PTYS BINFMT_ELF BINFMT_SCRIPT PROC_FS
    PROC_SYSCTL SYSFS DEVTMPFS DEVTMPFS_MOUNT TMPFS SHMEM MULTIUSER FUTEX EPOLL SIGNALFD TIMERFD EVENTFD AIO FILE_LOCKING
    ADVISE_SYSCALLS MEMBARRIER POSIX_TIMERS HIGH_RES_TIMERS INOTIFY_USER PCI VIRTIO_MENU VIRTIO_PCI ACPI NET INET UNIX
    NET_9P NET_9P_VIRTIO NETWORK_FILESYSTEMS 9P_FS OVERLAY_FS HW_RANDOM HW_RANDOM_VIRTIO BLOCK BLK_DEV VIRTIO_BLK EXT4_FS
    MAGIC_SYSRQ KERNEL_GZIP DEBUG_KERNEL DEBUG_FS"
# What it is for.
memory="IDLE_PAGE_TRACKING TRANSPARENT_HUGEPAGE TRANSPARENT_HUGEPAGE_MADVISE PROC_PAGE_MONITOR USERFAULTFD COMPACTION
    MIGRATION MEMFD_CREATE CROSS_MEMORY_ATTACH VM_EVENT_COUNTERS CGROUPS MEMCG PSI SWAP ZSMALLOC ZRAM DAMON DAMON_VADDR
    DAMON_PADDR DAMON_SYSFS HUGETLBFS"
without="CPU_MITIGATIONS KERNEL_XZ"  # security is not its purpose, and unpacking takes long under emulation

[ "$(uname -m)" = x86_64 ] || fail "the lab emulates x86_64 machines only" "build it on one"
if [ -e "$lab/$name/release" ]; then
    echo "build-page-idle-kernel: it is there: .lab/$name"
    exit 0
fi
mkdir -p "$lab"
exec 9>"$lab/lock-$name"
flock 9

missing=()
for pair in flex:flex bison:bison bc:bc make:make gcc:gcc xz:xz-utils; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ -e /usr/include/libelf.h ] || missing+=(libelf-dev)
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || fail "missing here: ${missing[*]}" "this script knows Debian only"
    [ "$(id -u)" = 0 ] || fail "missing here: ${missing[*]}" "run as root, or install them"
    apt-get -qq update >/dev/null
    apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${missing[@]}" >"$lab/apt.log" 2>&1 ||
        fail "apt-get install ${missing[*]} failed" "see .lab/apt.log"
fi

if [ ! -e "$work/.unpacked" ]; then
    echo "build-page-idle-kernel: getting the source"
    rm -rf "$work"
    mkdir -p "$work/package"
    (cd "$work/package" && apt-get -qq download linux-source-6.12 2>"$lab/apt.log") ||
        fail "no source of Linux 6.12 here" "Debian 12 (with its security updates) or 13 has it; see .lab/apt.log"
    dpkg -x "$work"/package/*.deb "$work/package/tree"
    tar -xf "$work"/package/tree/usr/src/linux-source-6.12.tar.xz -C "$work" --strip-components=1
    rm -rf "$work/package"
    touch "$work/.unpacked"
fi

cd "$work"
if [ ! -e .configured ]; then
    make -s tinyconfig >/dev/null
    for option in $without; do ./scripts/config -d "$option"; done
    for option in $machine $memory; do ./scripts/config -e "$option"; done
    ./scripts/config --set-str LOCALVERSION -page-idle
    make -s olddefconfig >/dev/null
    for option in $machine $memory; do
        grep -q "^CONFIG_$option=y" .config || fail "CONFIG_$option cannot be set" "has the source changed?"
    done
    touch .configured
fi
echo "build-page-idle-kernel: compiling"
make -s -j"$(nproc)" bzImage >build.log 2>&1 || { tail -5 build.log >&2; fail "it does not build" "see $work/build.log"; }

rm -rf "${lab:?}/$name.new"
mkdir -p "$lab/$name.new/boot"
release=$(make -s kernelrelease)
cp arch/x86/boot/bzImage "$lab/$name.new/boot/vmlinuz-$release"
touch "$lab/$name.new/self-contained"  # it needs no modules, and so no initial RAM disk
echo "$release" >"$lab/$name.new/release"
rm -rf "${lab:?}/$name"
mv -T "$lab/$name.new" "$lab/$name"
cd "$top"
rm -rf "$work"
echo "build-page-idle-kernel: done: .lab/$name"
