"""Damage that is known is looked for before a disk is overwritten; what is not known says how to go on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lab.require import requires
from tests.restore.test_onto import MIB, image_of, onto
from tests.restore.test_restore import damage, files, flip_one
from tests.restore.world import World
from vmcellar.errors import IntegrityError
from vmcellar.repository.scrub import verify_point


def test_damage_that_a_check_noted_is_found_before_the_disk_is_touched(world: World, tmp_path: Path) -> None:
    requires("qemu-nbd")
    data = random.Random(5).randbytes(4 * MIB)
    point = world.add({"vda": data})
    old = random.Random(6).randbytes(4 * MIB)
    path = image_of(tmp_path, old, "raw")
    pack = max(files(world, "data"), key=lambda each: each.stat().st_size)
    damage(pack, flip_one)
    with pytest.raises(IntegrityError) as caught:
        onto(world, point, vda=path)
    assert "finishes it once the damage is mended" in caught.value.hint, "nobody knew"
    path.write_bytes(old)
    assert not verify_point(world.repository, point, deep=True).ok
    with pytest.raises(IntegrityError, match=r"vm: disk vda at byte .*damaged") as caught:
        onto(world, point, vda=path)
    assert "nothing was written" in caught.value.hint
    assert path.read_bytes() == old
    damage(pack, flip_one)
    assert verify_point(world.repository, point, deep=True).ok
    onto(world, point, vda=path)
    assert path.read_bytes() == data
