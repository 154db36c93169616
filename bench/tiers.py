"""What tiers on RADOS and radosgw reach beside Ceph's own bench and bare boto3; what prefetch brings a restore from S3.

    ./run bench tiers [--packs 8] [--rounds 5] [--restores 3] [--ms 20] [--only ceph s3 restore] [--at-once 4]

A cluster of one OSD is started on /dev/shm; all take turns on it. `place` is what moves and backups do with a pack,
`fetch` what a restore does with it. A restore through a link that adds `--ms` to each round trip is done chunk by
chunk, then with one reader that takes neighbours together as the engine does, then as it is.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import numpy as np

from lab.ceph import ACCESS, SECRET, Cluster
from lab.slowlink import slow_link
from tests.repository.writing import Change, back_up
from vmcellar.config.tiers import TierSettings
from vmcellar.memory import BufferPool, keep_freed_memory
from vmcellar.repository import packs
from vmcellar.repository.packs import Group, Location
from vmcellar.repository.points import RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.tiers.base import Tier
from vmcellar.tiers.registry import open_tier
from vmcellar.tiers.s3_client import make_client

MIB = 1 << 20
PACK = 64 * MIB
PART = 16 * MIB
READ = 4 * MIB
READERS = 4
"""What a restore has on two cores."""


@dataclass(frozen=True, slots=True)
class Passphrase:
    """The key of a repository that lives as long as the bench."""

    def read(self) -> bytes:
        """The passphrase."""
        return b"bench"


@dataclass(frozen=True, slots=True)
class Places:
    """What Repository asks of a configuration."""

    state: Path
    hot: TierSettings
    key: Passphrase = Passphrase()

    def hot_tier(self) -> TierSettings:
        """The bucket."""
        return self.hot

    def other_tiers(self) -> Mapping[str, TierSettings]:
        """None."""
        return {}


class Work:
    """Packs to place, and the tiers that they go to."""

    def __init__(self, cluster: Cluster, folder: Path, packs: int, at_once: int) -> None:
        self.cluster = cluster
        self.at_once = at_once
        self.folder = folder
        self.files = [folder / f"pack-{number}" for number in range(packs)]
        for path in self.files:
            path.write_bytes(os.urandom(PACK))
        self.bytes = packs * PACK
        self._buffers = BufferPool(READ)
        self._keys: dict[str, list[str]] = {}

    def tier(self, kind: str) -> Tier:
        """A tier with the defaults."""
        return open_tier("hot", self.settings(kind), self.folder / "state")

    def settings(self, kind: str, endpoint: str = "") -> TierSettings:
        """As a configuration has them."""
        if kind == "ceph":
            return TierSettings.model_validate({"storage": "ceph::backups/bench", "conf": self.cluster.conf})
        section = {
            "storage": "s3://bench/cellar",
            "endpoint": endpoint or self.cluster.endpoint,
            "access_key": {"environment": "LAB_ACCESS"},
            "secret_key": {"environment": "LAB_SECRET"},
        }
        return TierSettings.model_validate(section)

    def place(self, tier: Tier) -> float:
        """Adopt every pack; MiB per second."""
        keys = [f"data/be/{uuid4().hex}" for _ in self.files]
        pairs = list(zip(self.files, keys, strict=True))
        links = [(path.with_suffix(f".{key[-8:]}"), key) for path, key in pairs]
        for (path, _), (link, _) in zip(pairs, links, strict=True):
            os.link(path, link)
        self._keys[tier.kind] = keys
        return self._rate(lambda: _all(self.at_once, lambda pair: tier.adopt(*pair), links))

    def fetch(self, tier: Tier) -> float:
        """Read every pack as a restore does; MiB per second. The packs go afterwards."""
        keys = self._keys.pop(tier.kind)

        def read(piece: tuple[str, int]) -> None:
            key, start = piece
            with tier.open(key) as reader, self._buffers.buffer() as buffer:
                reader.read_into(start, buffer)

        rate = self._rate(lambda: _all(READERS, read, itertools.product(keys, range(0, PACK, READ))))
        for key in keys:
            tier.delete(key)
        return rate

    def _rate(self, work: Callable[[], object]) -> float:
        began = time.monotonic()
        work()
        return self.bytes / MIB / (time.monotonic() - began)


def _all(threads: int, work: Callable[[Any], object], items: Any) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))


def rados_bench(work: Work) -> tuple[float, float]:
    """(write, sequential read) in MiB per second, by Ceph's own bench: objects of 4 MiB, 16 at once."""
    common = ("rados", "-p", "backups", "--namespace", "rados-bench", "bench")
    written = work.cluster.call(*common, "4", "write", "-b", str(READ), "-t", "16", "--no-cleanup")
    read = work.cluster.call(*common, "3", "seq", "-t", "16")
    work.cluster.call("rados", "-p", "backups", "--namespace", "rados-bench", "cleanup")
    return _bandwidth(written), _bandwidth(read)


def _bandwidth(text: str) -> float:
    found = re.search(r"^Bandwidth \(MB/sec\):\s+([0-9.]+)", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"rados bench said no bandwidth: {text[-500:]}")
    return float(found[1])


def boto3_loop(work: Work) -> tuple[float, float]:
    """(write, read) in MiB per second of the bare calls: parts one after the other, then each object whole."""
    client = _client(work)
    names = [uuid4().hex for _ in work.files]

    def upload() -> None:
        for path, name in zip(work.files, names, strict=True):
            place = {"Bucket": "bench", "Key": name}
            started = client.create_multipart_upload(**place)
            parts = []
            with path.open("rb") as file:
                for number in itertools.count(1):
                    data = file.read(PART)
                    if not data:
                        break
                    answer = client.upload_part(**place, UploadId=started["UploadId"], PartNumber=number, Body=data)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            client.complete_multipart_upload(**place, UploadId=started["UploadId"], MultipartUpload={"Parts": parts})

    def download() -> None:
        for name in names:
            with client.get_object(Bucket="bench", Key=name)["Body"] as body:
                while body.read(READ):
                    pass

    return _twice(work, client, names, upload, download)


def boto3_transfer(work: Work) -> tuple[float, float]:
    """(write, read) in MiB per second of boto3's transfer manager with as many threads as a tier: parts at once."""
    from boto3.s3.transfer import TransferConfig  # noqa: PLC0415  (a third of a second)

    client = _client(work)
    names = [uuid4().hex for _ in work.files]
    config = TransferConfig(multipart_chunksize=PART, multipart_threshold=PART, max_concurrency=4)

    def upload() -> None:
        for path, name in zip(work.files, names, strict=True):
            client.upload_file(str(path), "bench", name, Config=config)

    def download() -> None:
        for name in names:
            client.download_file("bench", name, str(work.folder / "download"), Config=config)

    return _twice(work, client, names, upload, download)


def _client(work: Work) -> Any:
    import boto3  # noqa: PLC0415  (the same)

    return boto3.client(
        "s3", endpoint_url=work.cluster.endpoint, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )  # fmt: skip


def _twice(
    work: Work, client: Any, names: list[str], upload: Callable[[], None], download: Callable[[], None]
) -> tuple[float, float]:
    rates = work._rate(upload), work._rate(download)
    for name in names:
        client.delete_object(Bucket="bench", Key=name)
    return rates


def in_turn(rounds: int, cases: Mapping[str, Callable[[], tuple[float, float]]]) -> None:
    """Each case once per round; medians of both figures, and of their ratios to the first case's in the same round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            found[name].append(case())
    first = next(iter(found))
    for way, place in (("place", 0), ("fetch", 1)):
        for name, pairs in found.items():
            rates = sorted(pair[place] for pair in pairs)
            median = statistics.median(rates)
            ratios = [pair[place] / other[place] for pair, other in zip(pairs, found[first], strict=True)]
            print(
                f"{way} {name:34} {median:6.0f} MiB/s ({rates[0]:.0f} to {rates[-1]:.0f}), "
                f"{statistics.median(ratios):.2f} of {first} ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


def restores(work: Work, rounds: int, milliseconds: float) -> None:
    """Two points through the slow link: one whose pieces lie side by side, one whose pieces lie scattered."""
    with slow_link(work.cluster.ports["rgw"], milliseconds) as endpoint:
        places = Places(work.folder / "state", work.settings("s3", endpoint))
        repository = Repository.init(places)
        for name, point in points(repository).items():
            cases = ("chunk by chunk", "one reader", "as it is")
            seconds: dict[str, list[float]] = {case: [] for case in cases}
            read = 0
            for _ in range(rounds):
                for case in cases:
                    with _reading(case):
                        taken, read = _restore(repository, point, work.folder / "restored")
                    seconds[case].append(taken)
            quick = statistics.median(seconds["as it is"])
            for case, each in seconds.items():
                median = statistics.median(each)
                print(
                    f"restore {name}, {read / MIB:.0f} MiB stored, {case}: {median:.2f} s "
                    f"({min(each):.2f} to {max(each):.2f}), {median / quick:.1f} times as long as it is",
                    flush=True,
                )
        repository.close()


def _restore(repository: Repository, point: RestorePoint, folder: Path) -> tuple[float, int]:
    """(seconds, bytes read) of one restore to a raw image."""
    try:
        began = time.monotonic()
        report = restore_point(repository, point, RestoreTarget(folder, "raw"))
        return time.monotonic() - began, report.read
    finally:
        shutil.rmtree(folder)


@contextmanager
def _reading(case: str) -> Iterator[None]:
    """Restores of the block read in this way."""
    together = packs.groups

    def alone(objects: Iterable[Location]) -> Iterator[Group]:
        return itertools.chain.from_iterable(together([each]) for each in objects)

    with ExitStack() as stack:
        if case != "as it is":
            stack.enter_context(patch("vmcellar.restore.fetch.readers_for", return_value=1))
        if case == "chunk by chunk":
            stack.enter_context(patch("vmcellar.restore.fetch.groups", alone))
        yield


def points(repository: Repository) -> dict[str, RestorePoint]:
    """`dense`: a full of 512 MiB; `scattered`: what is left of one after three of four of its pieces were freed."""
    random = np.random.default_rng(7)
    with ThreadPoolExecutor(2) as pool:
        dense = back_up(repository, pool, list(_pieces(random, 512, MIB, MIB)), 512 * MIB)
        small = list(_pieces(random, 2048, 64 << 10, 128 << 10))
        full = back_up(repository, pool, small, 256 * MIB, vm="scattered")
        freed: list[Change] = [(offset, len(data)) for number, (offset, data) in enumerate(small) if number % 4]
        return {"dense": dense, "scattered": back_up(repository, pool, freed, 256 * MIB, full, vm="scattered")}


def _pieces(random: np.random.Generator, count: int, length: int, step: int) -> Iterator[tuple[int, bytes]]:
    """Data of which half does not shrink."""
    for number in range(count):
        yield number * step, random.bytes(length // 2) + bytes([number % 251 + 1]) * (length // 2)


def main() -> int:
    """Parse the arguments, start the cluster, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=4, help="packs that are placed at once, as of tiers move")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restores", type=int, default=3)
    parser.add_argument("--ms", type=float, default=20)
    parser.add_argument("--only", nargs="+", choices=("ceph", "s3", "restore"), default=("ceph", "s3", "restore"))
    options = parser.parse_args()
    keep_freed_memory()
    os.environ |= {"LAB_ACCESS": ACCESS, "LAB_SECRET": SECRET}
    cluster = Cluster.start()
    try:
        with tempfile.TemporaryDirectory(prefix="vmcellar-bench-") as name:
            run(Work(cluster, Path(name), options.packs, options.at_once), options)
    finally:
        cluster.stop()
    return 0


def run(work: Work, options: argparse.Namespace) -> None:
    """What was asked for."""
    work.cluster.make_pool("backups")
    make_client(work.settings("s3"), "bench").create_bucket(Bucket="bench")
    if "ceph" in options.only:
        ceph = work.tier("ceph")
        cases = {"rados bench, 16 at once": lambda: rados_bench(work)}
        in_turn(options.rounds, {**cases, "tier": lambda: (work.place(ceph), work.fetch(ceph))})
    if "s3" in options.only:
        s3 = work.tier("s3")
        bare = {"boto3, a bare loop": lambda: boto3_loop(work), "boto3, upload_file": lambda: boto3_transfer(work)}
        in_turn(options.rounds, {**bare, "tier": lambda: (work.place(s3), work.fetch(s3))})
    if "restore" in options.only:
        restores(work, options.restores, options.ms)


if __name__ == "__main__":
    sys.exit(main())
