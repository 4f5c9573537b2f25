#!/bin/sh
# The command that every host of the workload runs: a virtual machine whose NVDIMM is the region.
#
#   SUSTAIN_REGION=nv.img guest.sh DIR        DIR: vmlinuz and initrd, by build.py
#
# `sustain run` sets SUSTAIN_REGION. The guest's console is this command's output. QEMU takes the place of the shell: what
# is frozen, stopped or killed is QEMU itself. Beside the region it opens a QMP socket (the region's path with .qmp).
set -eu
: "${SUSTAIN_REGION:?is set by sustain run: the file behind the NVDIMM}"
size=$(stat -c %s "$SUSTAIN_REGION")

# share=on: the guest's stores are stores to the region. The label area lies at its end, so it moves along.
exec qemu-system-x86_64 \
    -machine q35,nvdimm=on -accel "${GUEST_ACCEL:-tcg}" -cpu max -smp 1 -m 384M,slots=1,maxmem=8G \
    -object "memory-backend-file,id=nv,share=on,mem-path=$SUSTAIN_REGION,size=$size,align=2M" \
    -device nvdimm,id=nvdimm0,memdev=nv,label-size=256K \
    -qmp "unix:$SUSTAIN_REGION.qmp,server=on,wait=off" \
    -chardev stdio,id=console,signal=off -serial chardev:console \
    -nodefaults -no-user-config -display none -no-reboot \
    -device isa-debug-exit,iobase=0xf4,iosize=1 \
    -kernel "$1/vmlinuz" -initrd "$1/initrd" \
    -append "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init ${GUEST_APPEND:-}" </dev/null
