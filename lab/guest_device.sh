#!/bin/sh
# Print the device of the disk with this serial number: names like vdb move when a disk goes, serial numbers do not.
for block in /sys/block/vd* /sys/block/sd*; do
    case "$(cat "$block/serial" 2>/dev/null)$(tail -c +5 "$block/device/vpd_pg80" 2>/dev/null)" in
        *"$1"*) echo "/dev/${block##*/}"; exit 0 ;;
    esac
done
echo "no disk with serial number $1" >&2
exit 1
