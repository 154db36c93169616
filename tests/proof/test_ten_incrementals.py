"""A full and ten incrementals of a live guest; after every one, every disk of every point restores equal."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lab.disks import MIB, DiskSpec
from lab.guest import LabGuest
from tests.proof.cellar import Cellar, Disks

pytestmark = pytest.mark.guest

KIB = 1 << 10
SEED = 20
DISKS = (
    DiskSpec("vda", 24 * MIB, ext4=True),
    DiskSpec("vdb", 8 * MIB, detect_zeroes="off"),
    DiskSpec("vdc", 12 * MIB, sector=4096),
    DiskSpec("sda", 6 * MIB + 5 * 4 * KIB),
)
RAW_DISKS = ("vdb", "vdc", "sda")


def test_every_point_restores_equal_after_each_of_ten_incrementals(
    make_guest: Callable[..., LabGuest], cellar: Cellar
) -> None:
    guest = make_guest(DISKS)
    guest.start()
    dice = random.Random(SEED)
    references: dict[str, Disks] = {}
    for number in range(11):
        change(guest, dice, number)
        summary, disks = cellar.backup_with_reference(guest)
        references[summary.id] = disks
        assert summary.kind == ("incremental" if number else "full"), summary
        assert (summary.verified, summary.consistency) == (True, "quiesced")
        for point_id, expected in references.items():
            cellar.assert_restores(point_id, expected)
        cellar.assert_nothing_left(guest)
    cellar.assert_restores(summary.id, disks, image_format="qcow2")
    assert sum(point.bytes_zero for point in cellar.points(guest)) > 4 * MIB, (
        "zeroes and discards were to be part of it"
    )
    assert guest.agent("guest-fsfreeze-status") == "thawed"


def change(guest: LabGuest, dice: random.Random, number: int) -> None:
    """Random writes, zeroes and discards on the raw disks, files and fstrim on the ext4."""
    for target in RAW_DISKS:
        size = guest.disks[target].size
        guest.write(target, *_range(dice, size), dice.randrange(1 << 30))
        guest.write(target, *_range(dice, size), dice.randrange(1 << 30))
        guest.zero(target, *_range(dice, size))
        guest.discard(target, *_range(dice, size))
    guest.fill(f"file-{number}", dice.choice((64 * KIB, MIB)), dice.randrange(1 << 30))
    if number > 1:
        guest.delete(f"file-{number - 2}")
    if number % 3 == 2:
        guest.fstrim()
    guest.sync()


def _range(dice: random.Random, size: int) -> tuple[int, int]:
    """Offset and length of a piece of a disk of `size` bytes."""
    length = dice.choice((4 * KIB, 64 * KIB, 256 * KIB, MIB))
    return dice.randrange((size - length) // (4 * KIB) + 1) * 4 * KIB, length
