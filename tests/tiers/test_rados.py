"""What a real Ceph can do to a tier: a dead OSD, a full pool, no rights, a pool that goes, writers that died."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.ceph import Cluster
from tests.tiers.conftest import new_name
from vmcellar.config.tiers import TierSettings
from vmcellar.errors import IntegrityError, PermanentError, TransientError
from vmcellar.tiers.base import NotFoundError
from vmcellar.tiers.rados import RadosTier
from vmcellar.tiers.rados_layout import part_name
from vmcellar.tiers.retry import Patience


def open_rados(settings: TierSettings, folder: Path, attempts: int = 1) -> RadosTier:
    return RadosTier(settings, staging=folder / "staging", patience=Patience(attempts=attempts, pause=0))


@pytest.fixture
def rados(ceph_settings: TierSettings, tmp_path: Path) -> RadosTier:
    return open_rados(ceph_settings, tmp_path)


@pytest.fixture
def own_pool(cluster: Cluster, ceph_settings: TierSettings) -> Iterator[TierSettings]:
    """A pool that a test may fill or delete."""
    name = new_name()
    cluster.make_pool(name)
    yield ceph_settings.model_copy(update={"storage": f"ceph::{name}/ns"})
    cluster.call("ceph", "osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it")


def test_namespaces_do_not_see_each_other(rados: RadosTier, ceph_settings: TierSettings, tmp_path: Path) -> None:
    rados.put("points/one", b"1")
    other = open_rados(ceph_settings.model_copy(update={"storage": f"{ceph_settings.storage}-b"}), tmp_path)
    assert list(other.list("points/")) == []
    assert not other.exists("points/one")


def test_the_connection_ends_with_the_process(ceph_settings: TierSettings) -> None:
    """Else its threads meet what the end of the process has taken apart, and abort it: exit code 134 after success."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT_FOR_EVER, str(ceph_settings.conf), ceph_settings.storage],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "connected\nshutdown\n", "")


KEPT_FOR_EVER = """
import atexit, ctypes, sys
from vmcellar.config.tiers import TierSettings
from vmcellar.tiers.rados_pool import Pool

atexit.register(lambda: print(pool._cluster.state))
pool = Pool(TierSettings.model_validate({"conf": sys.argv[1], "storage": sys.argv[2]}), "hot")
ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))  # as a thread or a traceback does that keeps it to the end
print(pool._cluster.state)
"""


def test_no_object_is_larger_than_was_asked_for(rados: RadosTier, ceph_settings: TierSettings) -> None:
    for size in (ceph_settings.object - 64, ceph_settings.object - 63, 5 * ceph_settings.object):
        rados.put(f"data/aa/{size}", random.Random(size).randbytes(size))
        assert rados.get(f"data/aa/{size}") == random.Random(size).randbytes(size)
    pool = rados._pool
    sizes = [c.stat(name)[0] for c in (pool.heads, pool.parts) for name in pool.names(c)]
    assert len(sizes) == 3 + 1 + 5
    assert max(sizes) == ceph_settings.object


def test_parts_of_a_writer_that_died_are_unseen_and_cleared_when_old(rados: RadosTier, tmp_path: Path) -> None:
    rados.put("data/aa/kept", bytes(200_000))
    pool = rados._pool
    for number in range(3):
        pool.parts.write_full(part_name("data/aa/dead", b"u" * 16, number), b"half")
    assert [key for key, _ in rados.list("data/")] == ["data/aa/kept"]
    assert rados.clear_unfinished(3600) == []
    assert rados.clear_unfinished(-60) == ["data/aa/dead"]
    assert rados.clear_unfinished(-60) == []
    assert rados.get("data/aa/kept") == bytes(200_000)
    source = tmp_path / "pack"
    source.write_bytes(b"x" * 200_000)
    rados.adopt(source, "data/aa/dead")
    assert rados.size("data/aa/dead") == 200_000


def test_a_loser_leaves_nothing(rados: RadosTier) -> None:
    rados.put("data/aa/aaaa", bytes(200_000))
    before = rados._pool.names(rados._pool.parts)
    with pytest.raises(PermanentError, match="data/aa/aaaa exists"):
        rados.put("data/aa/aaaa", b"y" * 200_000)
    assert rados._pool.names(rados._pool.parts) == before


def test_a_missing_or_short_part_is_an_integrity_error(rados: RadosTier) -> None:
    rados.put("data/aa/aaaa", bytes(200_000))
    pool = rados._pool
    names = pool.names(pool.parts)
    pool.parts.trunc(names[1], 10)
    with pytest.raises(IntegrityError, match="data/aa/aaaa ends before"):
        rados.get("data/aa/aaaa")
    pool.parts.remove_object(names[1])
    with pytest.raises(IntegrityError, match="data/aa/aaaa: one of its parts is missing"):
        rados.get("data/aa/aaaa")
    pool.heads.write_full("data/aa/strange", b"not ours" * 20)
    with pytest.raises(IntegrityError, match="data/aa/strange: its head is not one of"):
        list(rados.list("data/"))


def test_a_dead_osd_is_transient_within_the_limit_and_passes(
    cluster: Cluster, ceph_settings: TierSettings, tmp_path: Path
) -> None:
    rados = open_rados(ceph_settings.model_copy(update={"timeout": 2}), tmp_path)
    rados.put("points/one", b"1")
    cluster.kill_osd()
    try:
        with pytest.raises(TransientError, match="points/two") as caught:
            rados.put("points/two", b"2")
        assert "ceph health" in caught.value.hint
    finally:
        cluster.start_osd()
    patient = open_rados(ceph_settings, tmp_path, attempts=5)
    assert patient.get("points/one") == b"1"
    if not patient.exists("points/two"):
        patient.put("points/two", b"2")
    assert patient.get("points/two") == b"2"


def test_a_full_pool_is_permanent_and_deletes_still_work(
    cluster: Cluster, own_pool: TierSettings, tmp_path: Path
) -> None:
    rados = open_rados(own_pool, tmp_path)
    pool = own_pool.storage.removeprefix("ceph::").partition("/")[0]
    cluster.call("ceph", "osd", "pool", "set-quota", pool, "max_objects", "3")

    def fill() -> None:
        for number in range(100_000):
            rados.put(f"points/{number}", b"x")

    with pytest.raises(PermanentError, match=r"points/\w+") as caught:
        fill()
    assert "quota" in caught.value.hint
    rados.delete("points/0")


def test_a_pool_that_goes_never_looks_empty(cluster: Cluster, ceph_settings: TierSettings, tmp_path: Path) -> None:
    name = new_name()
    cluster.make_pool(name)
    rados = open_rados(ceph_settings.model_copy(update={"storage": f"ceph::{name}/ns"}), tmp_path)
    rados.put("points/one", b"1")
    cluster.call("ceph", "osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it")
    rados._pool._cluster.wait_for_latest_osdmap()
    for call in (
        lambda: list(rados.list("points/")),
        lambda: rados.exists("points/one"),
        lambda: rados.put("points/two", b"2"),
    ):
        with pytest.raises(PermanentError, match="there is no pool") as caught:
            call()
        assert not isinstance(caught.value, NotFoundError)


def test_who_may_not_and_what_is_not_there(cluster: Cluster, ceph_settings: TierSettings, tmp_path: Path) -> None:
    keyring = cluster.make_user("client.reader", "mon", "allow r", "osd", "allow r pool=backups")
    reader = open_rados(ceph_settings.model_copy(update={"user": "client.reader", "keyring": keyring}), tmp_path)
    assert list(reader.list("points/")) == []
    with pytest.raises(PermanentError, match="points/one") as caught:
        reader.put("points/one", b"1")
    assert "allow rwx" in caught.value.hint
    for change, words in (
        ({"user": "client.nobody"}, "client.nobody"),
        ({"user": "client.nobody", "keyring": tmp_path / "none"}, "client.nobody"),
        ({"conf": tmp_path / "no.conf"}, "no such file"),
        ({"storage": "ceph::nopool/ns"}, "there is no pool nopool"),
    ):
        with pytest.raises(PermanentError, match=words):
            open_rados(ceph_settings.model_copy(update=change), tmp_path)


def test_free_space_is_the_pools(rados: RadosTier) -> None:
    free = rados.free_bytes()
    assert free is not None
    assert 0 < free < 21 << 30
