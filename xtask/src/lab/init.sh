#!/bin/sh
# First program of the lab's VM: the machine's own root, read-only, under an overlay in memory; then session.sh in it.
/bin/busybox --install -s /bin
export PATH=/bin
fail() { echo "lab: $*"; echo o > /proc/sysrq-trigger; sleep 60; }

mkdir -p /proc /sys /dev /host /new /rw /exchange
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod "$module" || fail "cannot load $module"; done

share=trans=virtio,version=9p2000.L,msize=1048576
mount -t 9p -o $share,cache=loose,ro host /host || fail "no root"
mount -t 9p -o $share exchange /exchange || fail "no exchange directory"
mount -t tmpfs -o size=80% tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new || fail "no overlay"

# The kernel's modules where modprobe looks, and the exchange directory where it is outside: paths mean the same.
mkdir -p /new/lib/modules
mount -t 9p -o $share,cache=loose,ro modules /new/lib/modules || fail "no modules"
run=$(cat /exchange/run)
mkdir -p "/new$run"
mount -o move /exchange "/new$run" || fail "no $run"
for directory in proc sys dev; do mount -o rbind /$directory /new/$directory; done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t tmpfs tmpfs /new/run
exec chroot /new /bin/bash "$run/session.sh" "$run"
