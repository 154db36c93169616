#!/bin/sh
# The first process of the laboratory's guest. Everything is in the initramfs; /dev/vda, when it holds ext4, is mounted on /data.
export PATH=/bin:/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
for module in $(cat /modules/order); do insmod "/modules/$module"; done

if grep -q lab.probe /proc/cmdline; then
    echo LAB-GUEST-RUNS >/dev/ttyS0
    poweroff -f
fi

mkdir -p /dev/virtio-ports /data
for port in /sys/class/virtio-ports/vport*; do
    ln -s "/dev/${port##*/}" "/dev/virtio-ports/$(cat "$port/name")"
done
[ -b /dev/vda ] && mount -t ext4 -o noatime /dev/vda /data 2>/dev/null

agent=/dev/virtio-ports/org.qemu.guest_agent.0
[ -e "$agent" ] && while :; do
    [ -e /run/no-agent ] || qemu-ga -m virtio-serial -p "$agent" -t /run
    sleep 0.2
done >/dev/null 2>&1 </dev/null &

# One line per command on the channel: a number that the answer repeats, and a script in base64. What follows is its input.
serve() {
    while read -r number script; do
        echo "$script" | base64 -d >/run/script
        sh /run/script >/run/output 2>&1
        code=$?
        echo "$number $code $(stat -c %s /run/output)"
        cat /run/output
    done
}
# The port stays open between clients: closing it drops what the next client has already sent.
exec 3<>/dev/virtio-ports/lab.shell.0
while :; do
    serve <&3 >&3
    sleep 0.1
done
