"""Restore points as objects: every bit counts, and a record of another place is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.repository.fakes import FixedKeyring
from tests.repository.writing import point_of
from vmcellar.errors import IntegrityError
from vmcellar.repository import envelope, layout, points
from vmcellar.repository.points import DiskRecord, RestorePoint, UncoveredDisk

REPOSITORY = b"r" * 16


def a_point() -> RestorePoint:
    disk = DiskRecord("vda", 1 << 30, "ab" * 32, 1, "qcow2", "image", serial="S1", bytes_read=5)
    point = point_of("wéb", disk)
    uncovered = (UncoveredDisk("sda", "a CD", expected=True),)
    return replace(point, repository=REPOSITORY.hex(), uncovered=uncovered, seconds={"export": 1.5}, warnings=("w",))


def test_a_point_comes_back_equal(keyring: FixedKeyring) -> None:
    point = a_point()
    data = points.encode(keyring, REPOSITORY, point)
    assert points.decode(keyring, REPOSITORY, point.id, data) == point


def test_every_flipped_bit_and_cut_is_found_and_named(keyring: FixedKeyring) -> None:
    point = a_point()
    data = points.encode(keyring, REPOSITORY, point)
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        with pytest.raises(IntegrityError, match=point.id):
            points.decode(keyring, REPOSITORY, point.id, damaged)
        with pytest.raises(IntegrityError, match=point.id):
            points.decode(keyring, REPOSITORY, point.id, data[:place])


def test_swapped_foreign_and_unsigned_points_are_refused(keyring: FixedKeyring) -> None:
    point = a_point()
    data = points.encode(keyring, REPOSITORY, point)
    with pytest.raises(IntegrityError):
        points.decode(keyring, REPOSITORY, points.new_point_id(0), data)
    with pytest.raises(IntegrityError):
        points.decode(keyring, b"o" * 16, point.id, data)
    plain = envelope.unwrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, point.id.encode(), data)
    forged = plain[:10] + bytes([plain[10] ^ 1]) + plain[11:]
    sealed = envelope.wrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, point.id.encode(), forged)
    with pytest.raises(IntegrityError, match="signature"):
        points.decode(keyring, REPOSITORY, point.id, sealed)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_signed_text_parses_or_is_refused(text: bytes) -> None:
    keyring = FixedKeyring()
    point_id = "20270115T080000Z-00000000"
    signature = keyring.sign(layout.POINT_SIGNED + REPOSITORY + point_id.encode() + b"\n" + text)
    plain = len(signature).to_bytes(2, "little") + signature + text
    data = envelope.wrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, point_id.encode(), plain)
    with pytest.raises(IntegrityError, match=point_id):
        points.decode(keyring, REPOSITORY, point_id, data)


def test_unknown_fields_and_wrong_types_are_refused(keyring: FixedKeyring) -> None:
    point = a_point()
    text = points._adapter().dump_json(point)
    for wrong in (text[:-1] + b',"new":1}', text.replace(b'"verified":true', b'"verified":"yes"')):
        signature = keyring.sign(points._signed(REPOSITORY, point.id, wrong))
        plain = len(signature).to_bytes(2, "little") + signature + wrong
        data = envelope.wrap(keyring, layout.POINT_MAGIC, layout.POINT_SEAL, point.id.encode(), plain)
        with pytest.raises(IntegrityError, match="JSON"):
            points.decode(keyring, REPOSITORY, point.id, data)


def test_ids_sort_by_time() -> None:
    assert points.new_point_id(0).startswith("19700101T000000Z-")
    assert points.is_point_id(points.new_point_id(1e9))
    assert points.new_point_id(1) < points.new_point_id(2)
    assert points.new_point_id(1, "run") == points.new_point_id(1, "run") != points.new_point_id(1, "another")
    assert points.is_point_id(points.new_point_id(1, "run"))
