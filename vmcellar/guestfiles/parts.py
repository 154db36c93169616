"""Where the device of a file system lies on a guest's disks: on a disk, a partition, or a volume of linear parts.

The words come from a shell script in libguestfs's appliance. On any doubt there is no answer. Sources: dmsetup(8), the
kernel's admin-guide/device-mapper/linear.rst, and its names in /sys/dev/block.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SECTOR = 512
PLAIN, VOLUME = "plain", "volume"

SCRIPT = """\
number=$(mountpoint -d {mount}) || exit 0
[ "$(stat -c %d {mount})" = "$(stat -c %d {path})" ] || exit 0
part() {{
  real=$(readlink -f /sys/dev/block/$3) && disk=${{real##*/}} start=0
  if [ -e $real/partition ]; then start=$(cat $real/start) && real=${{real%/*}} && disk=${{real##*/}}; fi
  for label in /dev/disk/guestfs/*; do
    [ "$(readlink -f $label)" = /dev/$disk ] && echo "$1 $2 ${{label##*/}} $((start + $4))"
  done
}}
size=$(cat /sys/dev/block/$number/size) || exit 0
if [ -e /sys/dev/block/$number/dm ]; then
  echo volume $size
  dmsetup table --major ${{number%:*}} --minor ${{number#*:}} | while read at length kind device offset rest; do
    [ "$kind$rest" = linear ] && part $at $length $device $offset
  done
else echo plain $size && part 0 $size $number 0
fi
true
"""
"""Of `path`, on what is mounted at `mount` (both quoted): `plain SIZE` or `volume SIZE`, then a line for each part that
is linear and lies on a disk with a label or on its partition: where it begins, its length, the disk's label, where it
begins there; in sectors of 512 bytes. Nothing when something else is mounted below `mount`.
"""
_HEAD = re.compile(rf"({PLAIN}|{VOLUME}) (\d+)")
_PART = re.compile(r"(\d+) (\d+) (\S+) (\d+)")


@dataclass(frozen=True, slots=True)
class Part:
    """`size` bytes of a file system's device, `at` there, that lie on the disk `label` from `start` on."""

    at: int
    size: int
    label: str
    start: int


@dataclass(frozen=True, slots=True)
class Device:
    """A file system's device: its parts follow one another without a gap. `volume`: it is a device-mapper's (LVM)."""

    parts: tuple[Part, ...]
    volume: bool

    def on_disks(self, extents: Sequence[tuple[int, int]]) -> list[tuple[str, int, int]]:
        """(label, offset, length) in bytes of what (offset, length) of the device are, in order; empty when any of it
        is beyond the device's end.
        """
        found = []
        for offset, length in extents:
            pieces = [piece for part in self.parts if (piece := _within(part, offset, offset + length))]
            if sum(size for _, _, size in pieces) != length:
                return []
            found += pieces
        return found


def _within(part: Part, start: int, end: int) -> tuple[str, int, int] | None:
    first, last = max(start, part.at), min(end, part.at + part.size)
    return (part.label, part.start + first - part.at, last - first) if first < last else None


def parse(text: str) -> Device | None:
    """What `SCRIPT` printed; None when the whole device is not accounted for by parts, in order."""
    lines = text.splitlines()
    head = _HEAD.fullmatch(lines[0]) if lines else None
    matches = [_PART.fullmatch(line) for line in lines[1:]]
    if head is None or not matches:
        return None
    parts, reached = [], 0
    for match in matches:
        if match is None or int(match[1]) * _SECTOR != reached or not int(match[2]):
            return None
        size = int(match[2]) * _SECTOR
        parts.append(Part(reached, size, match[3], int(match[4]) * _SECTOR))
        reached += size
    return Device(tuple(parts), head[1] == VOLUME) if reached == int(head[2]) * _SECTOR else None
