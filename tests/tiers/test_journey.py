"""Sixty days of a growing disk under `hot 7d, warm 30d, cold rest`, with Glacier as the cold tier and a clock by hand.

Each day: a point, a rebalance (which takes packs apart that mostly cooled), a gc, and a look at where everything lies.
At the end every point is restored, and the bill is set beside that of keeping all on hot. The packs are a thousand
times smaller than real ones (64 KiB for 64 MiB), so what the price list charges per object is divided by a thousand,
too.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from lab.glacier import Glacier
from tests.repository.writing import Change, point_of, read_disk, rows_of, store
from tests.upkeep.tiered import NAMES, PLACEMENT, TieredWorld
from tests.upkeep.world import DAY, PIECE, START, piece
from vmcellar.config.prices import AWS_PRICES, Prices, Retrieval
from vmcellar.config.tiers import TierSettings
from vmcellar.policy.costs import GB, Stay, bill, month_cost
from vmcellar.policy.placement import sites_of
from vmcellar.repository.diskmap import DiskMap
from vmcellar.repository.points import DiskRecord, RestorePoint
from vmcellar.repository.repository import Repository
from vmcellar.restore.plan import make_plan
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point
from vmcellar.restore.thaw import ThawRecords, plan_thaw, request_thaw, thaw_status
from vmcellar.tiers.base import ArchivedError
from vmcellar.tiers.registry import open_tier
from vmcellar.upkeep import gc
from vmcellar.upkeep.rebalance import Rules

DAYS = 60
FIRST_PIECES, LAST_PIECES = 6, 16
SMALLER = 1000
GLACIER = AWS_PRICES["GLACIER"]
PRICES = {
    "hot": Prices(gb_month=0.10),
    "warm": Prices(gb_month=0.03),
    "cold": GLACIER.model_copy(
        update={
            "put_1000": GLACIER.put_1000 / SMALLER,
            "get_1000": GLACIER.get_1000 / SMALLER,
            "overhead": GLACIER.overhead // SMALLER,
            "overhead_hot": GLACIER.overhead_hot // SMALLER,
            "retrieval": {
                speed: Retrieval(gb=found.gb, requests_1000=found.requests_1000 / SMALLER, hours=found.hours)
                for speed, found in GLACIER.retrieval.items()
            },
        }
    ),
}
LIMITS = {"hot": 7 * DAY, "warm": 30 * DAY, "cold": float("inf")}


@dataclass
class Journey(TieredWorld):
    """`stays` is every pack on every tier, as the tiers were seen after each rebalance; `where` is the last look;
    `lives` are the packs as if each had lain on hot for as long as it was there.
    """

    stays: list[Stay] = field(default_factory=list)
    where: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lives: dict[str, Stay] = field(default_factory=dict)
    charged: float = 0.0
    all_hot: float = 0.0
    _last: dict[str, int] = field(default_factory=dict)

    def rules(self) -> Rules:
        return Rules(sites_of(PLACEMENT, PRICES))

    def add(self, host: Repository, day: int, parent: RestorePoint | None) -> RestorePoint:
        """The disk's next day: one piece is new, and every sixth day the disk is one piece larger."""
        pieces = min(LAST_PIECES, FIRST_PIECES + day // 6)
        changed = {day % 5: 1000 + day, pieces - 1: 500 + pieces}
        if parent is None:
            changed = {place: 100 + place for place in range(FIRST_PIECES)}
        writes: list[Change] = [(place * PIECE, piece(number)) for place, number in sorted(changed.items())]
        image = bytearray(self.model[parent.id] if parent else b"").ljust(pieces * PIECE, b"\0")
        for place, number in changed.items():
            image[place * PIECE : (place + 1) * PIECE] = piece(number)
        packs = store(host, writes)
        base = host.map(parent.disks[0]) if parent else host.empty_map(len(image))
        root, nodes = base.replace(rows_of(host, writes), len(image))
        disk = DiskRecord("vda", len(image), root.hex(), DiskMap(host, len(image)).level, "raw", "image-1")
        point = point_of("web", disk, self.now, parent.id if parent else None)
        rows = {pack.id: pack.rows for pack in packs}
        made = host.commit(rows, nodes, {"domain.xml": b"<domain/>"}, point, self.pool)
        self.model[made.id] = bytes(image)
        self.note()
        return made

    def note(self) -> None:
        """What the tiers hold now, in the books."""
        self.where = self.lying()
        tiers_by_name = {"hot": self.tier, **self.others}
        for key, tiers in self.where.items():
            assert len(tiers) == 1, f"{key} lies on {tiers}"
            (tier,) = tiers
            last = self._last.get(key)
            if last is not None and self.stays[last].tier == tier:
                continue
            size = tiers_by_name[tier].size(key)
            if last is None:
                self.lives[key] = Stay("hot", size, self.now)
            else:
                self._end(last)
            self._last[key] = len(self.stays)
            self.stays.append(Stay(tier, size, self.now))
        for key in self._last.keys() - self.where.keys():
            assert self.stays[self._last[key]].tier == "hot", "gc has nothing to delete elsewhere: every point is kept"
            self._end(self._last.pop(key))
            self.lives[key] = replace(self.lives[key], until=self.now)

    def _end(self, number: int) -> None:
        self.stays[number] = replace(self.stays[number], until=self.now)

    def half_a_day(self, server: Glacier) -> None:
        """Time goes by, and what lies there is charged, worked out from the list of prices by hand."""
        for key, (tier,) in self.where.items():
            size, price = self.stays[self._last[key]].size, PRICES[tier]
            monthly = (size + price.overhead) * price.gb_month + price.overhead_hot * price.thawed_gb_month
            self.charged += monthly / GB / 30 / 2
            self.all_hot += size * PRICES["hot"].gb_month / GB / 30 / 2
        self.now += DAY / 2
        server.advance(days=0.5)


@pytest.fixture
def journey(glacier_settings: TierSettings, tmp_path: Path) -> Iterator[Journey]:
    with ThreadPoolExecutor(2) as pool:
        made = Journey.make(tmp_path, pool)
        assert isinstance(made, Journey)
        made.others["cold"] = open_tier("cold", glacier_settings, tmp_path / "state")
        yield made


def expected(world: Journey, host: Repository) -> dict[str, tuple[str, ...]]:
    """Where the rules say each pack lies, worked out the slow way: every point's chunks one by one."""
    youngest: dict[str, float] = {}
    for point in host.points():
        chunks = {row["chunk"].tobytes() for rows in host.map(point.disks[0]).rows() for row in rows}
        for found in host.locate(sorted(chunks)).values():
            youngest[found.pack.key] = max(youngest.get(found.pack.key, 0.0), point.time)
    return {key: (next(name for name in NAMES if world.now - time < LIMITS[name]),) for key, time in youngest.items()}


def thaw_all(world: Journey, host: Repository, server: Glacier) -> int:
    """Thaw what every point needs, as `vmcellar thaw` does for each; how many waited."""
    records = ThawRecords(world.folder / "state", host)
    waited = 0
    for point in host.points():
        plan = plan_thaw(host, make_plan(host, point), PRICES, 3)
        if plan.waits:
            with pytest.raises(ArchivedError, match="must be thawed first"):
                restore_point(host, point, RestoreTarget(world.folder / "refused", "raw", (), False))
            assert not (world.folder / "refused").exists()
            request_thaw(host, plan, "standard", records)
            waited += 1
    server.advance(hours=5.1)
    assert {thaw_status(host, record).state for record in records.all()} <= {"ready"}
    return waited


def test_sixty_days_under_rules_cost_what_the_list_says(journey: Journey, glacier_server: Glacier) -> None:
    host = journey.host()
    parent = None
    for day in range(DAYS):
        parent = journey.add(host, day, parent)
        journey.half_a_day(glacier_server)
        report = journey.rebalance()
        assert (report.ok, report.held) == (True, ())
        gc.collect(journey.host("collector"))
        journey.note()
        wanted = expected(journey, journey.host("judge"))
        assert {key: journey.where.get(key) for key in wanted} == wanted, f"day {day}"
        journey.half_a_day(glacier_server)
    assert set(journey.where.values()) == {("hot",), ("warm",), ("cold",)}
    check_bill(journey)
    fresh = journey.host("fresh")
    assert thaw_all(journey, fresh, glacier_server) > 20
    points = fresh.points()
    assert len(points) == DAYS
    for point in points:
        assert read_disk(fresh, point) == journey.model[point.id], point.id
    for point in points[::20]:
        restore_point(fresh, point, RestoreTarget(journey.folder / point.id, "raw", (), False))
        assert (journey.folder / point.id / "vda.raw").read_bytes() == journey.model[point.id]


def check_bill(journey: Journey) -> None:
    end = START + DAYS * DAY
    found = bill(PRICES, journey.stays, START, end)
    cold = [stay for stay in journey.stays if stay.tier == "cold"]
    assert found.storage == pytest.approx(journey.charged)
    assert found.writes == pytest.approx(len(cold) * PRICES["cold"].put_1000 / 1000)
    assert found.early == 0, "nothing leaves the archive before its minimum time"
    everything_hot = bill(PRICES, journey.lives.values(), START, end)
    assert everything_hot.total == pytest.approx(journey.all_hot)
    assert found.total < 0.65 * everything_hot.total, f"{found.total} beside {everything_hot.total}"
    lying = [stay for stay in journey.stays if stay.until is None]
    monthly = sum(month_cost(PRICES[stay.tier], [stay.size]) for stay in lying)
    assert monthly < 0.5 * month_cost(PRICES["hot"], [stay.size for stay in lying])
