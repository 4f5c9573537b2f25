#!/usr/bin/env bash
# What Debian has to give for the tests and the benchmarks: packages, and two kernels to boot under emulation.
#
#   scripts/setup-debian.sh lab|test|bench...
#
# Installs only what is missing and says in one line when nothing is. The kernels, and the guest agent that guests
# run, are downloaded and unpacked into .lab/ (never installed); nothing that Debian would start as a service is left running. Safe to run twice,
# and by two checkouts at once. Needs root only when something has to be installed.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lab=$top/.lab
kernels=(6.12 6.1)   # 6.12: PAGEMAP_SCAN; 6.1: the one before it, optional
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

fail() { echo "error: $1" >&2; echo "hint: $2" >&2; exit 1; }

usage() { echo "usage: scripts/setup-debian.sh lab|test|bench..." >&2; exit 2; }

# "file-or-command package" pairs: a thing is there when the command or the file is, whoever put it there.
lab_needs=(
    qemu-system-x86_64 qemu-system-x86
    modprobe kmod
    ndctl ndctl
    mkfs.ext4 e2fsprogs
    mkswap util-linux
    swapon mount
    dmsetup dmsetup
    busybox busybox-static
    gcc gcc
    /usr/include/stdio.h libc6-dev
    dpkg dpkg
    /lib/systemd/systemd systemd
)
power_needs=(
    upsd nut-server
    certutil libnss3-tools
)
lease_needs=(
    etcd etcd-server
)
# libvirt's own QEMU driver, used without its daemon; the headers are what its Python binding is built with.
libvirt_needs=(
    gcc gcc
    pkg-config pkg-config
    /usr/include/libvirt/libvirt.h libvirt-dev
    /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so libvirt-daemon-driver-qemu
)
bench_needs=(
    gcc gcc
    /usr/include/stdio.h libc6-dev
    /usr/include/libpmemobj.h libpmemobj-dev
    redis-server redis-server
    pg_ctlcluster postgresql
    rsync rsync
    nc netcat-openbsd
)

has() {
    case $1 in
        /*) [ -e "$1" ] ;;
        *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

missing_packages() {
    while [ $# -gt 0 ]; do
        has "$1" || echo "$2"
        shift 2
    done | sort -u
}

missing_kernels() {
    [ "$(uname -m)" = x86_64 ] || return 0
    local series
    for series in "${kernels[@]}"; do
        [ -e "$lab/$series/release" ] || [ -e "$lab/$series/unavailable" ] || echo "$series"
    done
}

# The guest agent, for guests: installed, it would be a service of this machine.
missing_agent() {
    [ "$(uname -m)" != x86_64 ] || [ -e "$lab/agent/usr/sbin/qemu-ga" ] || [ -e "$lab/agent/usr/bin/qemu-ga" ] ||
        echo guest-agent
}

# apt's own lock makes a second caller wait instead of fail.
apt() { apt-get -qq -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@"; }

updated=
update_lists() {
    [ -n "$updated" ] && return
    apt update >/dev/null || fail "apt-get update failed" "is the network there? run it by hand to see"
    updated=1
}

# A package that is a service must not be started by its installation: Debian asks /usr/sbin/policy-rc.d. One
# that is there already (containers) is left as it is.
install_packages() {
    local policy=/usr/sbin/policy-rc.d status=0
    update_lists
    exec 8>/var/lock/sustain-setup   # whoever waits here must not find its policy taken away
    flock 8
    if [ ! -e $policy ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod 755 $policy
    else
        policy=
    fi
    apt install -y --no-install-recommends "$@" >"$lab/apt.log" 2>&1 || status=$?
    if [ -n "$policy" ]; then
        rm -f "$policy"
        trap - EXIT
        # Nor at the next boot: what the tests need they start themselves.
        for each in "$@"; do
            if [[ $each = redis-server || $each = nut-server || $each = rsync || $each = etcd-server || $each = postgresql ]] && command -v systemctl >/dev/null; then
                systemctl disable --quiet "${each/etcd-server/etcd}" 2>/dev/null || true
            fi
        done
    fi
    exec 8>&-
    [ $status = 0 ] || { tail -5 "$lab/apt.log" >&2; fail "apt-get install $* failed" "see .lab/apt.log"; }
}

# The newest kernel package of a series: the dependency of one of Debian's meta packages.
kernel_package() {
    local meta
    for meta in "linux-image-$1-amd64" linux-image-amd64; do
        apt-cache depends "$meta" 2>/dev/null | sed -n "s/^ *Depends: \(linux-image-$1[.+].*-amd64\)\$/\1/p"
    done | head -1
}

# Downloads a package and unpacks it; says where. The caller moves it to its place and removes what is left.
unpack() {
    local work
    work=$(mktemp -d "$lab/unpack.XXXXXX")
    chmod 755 "$work"
    (cd "$work" && apt download "$1" 2>"$lab/apt.log") ||
        fail "cannot download $1" "see .lab/apt.log; is the network there?"
    dpkg -x "$work"/*.deb "$work/tree"
    echo "$work"
}

unpack_agent() {
    local work
    update_lists
    work=$(unpack qemu-guest-agent)
    rm -rf "${lab:?}/agent"
    mv -T "$work/tree" "$lab/agent"
    rm -rf "$work"
}

unpack_kernel() {
    local series=$1 package work release
    update_lists
    package=$(kernel_package "$series")
    if [ -z "$package" ]; then
        [ "$series" = 6.12 ] && fail "no Linux 6.12 package here" "Debian 12 (with its security updates) or 13 has it"
        mkdir -p "$lab/$series"
        echo "this release of Debian has no Linux $series" > "$lab/$series/unavailable"
        return
    fi
    work=$(unpack "$package")
    release=$(basename "$work"/tree/boot/vmlinuz-*)
    release=${release#vmlinuz-}
    # Debian 13 merges /lib into /usr/lib: depmod and modprobe -d look in lib/modules.
    [ -e "$work/tree/lib" ] || ln -s usr/lib "$work/tree/lib"
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$work/tree" "$release"
    echo "$release" > "$work/tree/release"
    rm -rf "${lab:?}/$series"
    mv -T "$work/tree" "$lab/$series"
    rm -rf "$work"
}

[ $# -gt 0 ] || usage
needs=()
want_kernels=
for what in "$@"; do
    case $what in
        lab) needs+=("${lab_needs[@]}"); want_kernels=1 ;;
        test) needs+=("${lab_needs[@]}" "${bench_needs[@]}" "${power_needs[@]}" "${lease_needs[@]}" "${libvirt_needs[@]}"); want_kernels=1 ;;
        bench) needs+=("${bench_needs[@]}") ;;
        *) usage ;;
    esac
done

missing() {
    missing_packages "${needs[@]}"
    [ -z "$want_kernels" ] || { missing_kernels | sed 's/^/linux-/'; missing_agent; }
}

if [ -z "$(missing)" ]; then
    echo "setup-debian: nothing is missing for $*"
    exit 0
fi
command -v apt-get >/dev/null ||
    fail "missing here: $(missing | xargs)" "this script knows Debian only; install the like with your system's tools"
[ "$(id -u)" = 0 ] ||
    fail "missing here: $(missing | xargs)" "run as root: scripts/setup-debian.sh $*"

mkdir -p "$lab"
# Two runs in one checkout take turns; the second then finds nothing to do.
exec 9>"$lab/lock"
flock 9
mapfile -t packages < <(missing_packages "${needs[@]}")
if [ ${#packages[@]} -gt 0 ]; then
    echo "setup-debian: installing ${packages[*]}"
    install_packages "${packages[@]}"
fi
if [ -n "$want_kernels" ]; then
    for series in $(missing_kernels); do
        echo "setup-debian: unpacking Linux $series into .lab/"
        unpack_kernel "$series"
    done
    [ -z "$(missing_agent)" ] || { echo "setup-debian: unpacking the guest agent into .lab/"; unpack_agent; }
fi
[ -z "$(missing)" ] || fail "still missing: $(missing | xargs)" "see .lab/apt.log"
echo "setup-debian: done for $*"
