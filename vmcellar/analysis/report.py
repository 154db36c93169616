"""Everything that a look at the history gives, for people: tables as Markdown, plots as PNG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vmcellar.analysis import followed, plots, tables
from vmcellar.analysis import history as read
from vmcellar.analysis.anomalies import find
from vmcellar.analysis.capacity import capacity, tiers_now, use_rows
from vmcellar.analysis.figures import png
from vmcellar.analysis.fill import fill_of
from vmcellar.analysis.forecast import forecast_change
from vmcellar.analysis.heat import damage_of_newest, heat_map
from vmcellar.analysis.objectives import rpo, rto
from vmcellar.analysis.overview import overview
from vmcellar.analysis.picks import strongest, worst_first
from vmcellar.analysis.quality import findings, quarantine, validate
from vmcellar.analysis.source import targets
from vmcellar.analysis.unjudged import unjudged
from vmcellar.analysis.wondering import outcomes
from vmcellar.catalog.agreement import judge_segments
from vmcellar.catalog.rebuild import refresh
from vmcellar.errors import PermanentError
from vmcellar.policy.localzone import local_zone

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.figure import Figure

    from vmcellar.analysis.capacity import TierUse
    from vmcellar.analysis.heat import HeatMap
    from vmcellar.analysis.picks import Incident
    from vmcellar.catalog.catalog import Catalog
    from vmcellar.config.model import Config
    from vmcellar.repository.repository import Repository

RECENT_DAYS = 28
HEAT_POINTS = 80
BAD_MOST = 100
"""Bad rows that are shown; their number is always told."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What was found of a history: `runs` and `rows` that there are, `bad` ones that are not used, and what Great
    Expectations said of the whole (`ok`: no row is bad). `markdown` tells it. `damaged`: see `Analysis`.
    """

    runs: int
    rows: int
    bad: int
    ok: bool
    markdown: str
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Analysis:
    """`sections` are titles and their Markdown, `images` names (letters and dashes) and PNGs. `damaged` names what was
    found that cannot be read, of points and maps of disks: by far not all is read here.
    """

    sections: dict[str, str]
    images: dict[str, bytes]
    damaged: tuple[str, ...] = ()

    @property
    def markdown(self) -> str:
        """All sections on one page, what is damaged first."""
        damaged = {"Damaged": listed(self.damaged)} if self.damaged else {}
        return "\n\n".join(f"## {title}\n\n{text}" for title, text in (damaged | self.sections).items())


def listed(damaged: Iterable[str]) -> str:
    """Damage as Markdown, with what to do; "" for none."""
    lines = [f"- {each}" for each in damaged]
    return "\n".join([*lines, "", "`vmcellar verify --all` tells what else is damaged."]) if lines else ""


def check(catalog: Catalog, repository: Repository) -> tuple[Quality, pd.DataFrame]:
    """Bring the catalog up to the repository and judge the history that is looked at, of the last 25 weeks; with it
    the rows that analyses may use. The first call of a process loads Great Expectations, 10 s; one at a time in a
    process.
    """
    unreadable = refresh(catalog, repository).unreadable
    damaged = tuple(f"point {point}: {problem}" for point, problem in sorted(unreadable.items()))
    now = repository.clock()
    judge_segments(catalog, now)
    frame = read.recent(catalog, now)
    good, bad = quarantine(frame, now)
    verdict = validate(frame, now)
    shown = bad[["vm", "disk", "started", "run_id", "reasons"]].head(BAD_MOST)
    text = "\n\n".join(
        [
            f"{len(frame)} rows of {frame['run_id'].nunique()} runs; {len(bad)} are not used.",
            tables.markdown(tables.quality(findings(frame, now)), "Every rule is met by every row."),
            tables.markdown(shown, ""),
            listed(damaged),
        ]
    )
    quality = Quality(int(frame["run_id"].nunique()), len(frame), len(bad), verdict.ok, text.strip(), damaged)
    return quality, good


def analyse(catalog: Catalog, repository: Repository, config: Config, good: pd.DataFrame) -> Analysis:
    """Capacity, RPO, RTO, what is strange and what is coming, by the rows that `check` found good; notes the use of
    tiers.

    Asks every tier what lies on it, and reads maps of one disk's points; those that are damaged are named (`damaged`),
    and all else goes on. Raises what the tiers and the catalog raise.
    """
    now = repository.clock()
    standing = tiers_now(repository, config, now)
    catalog.add(use_rows(catalog.repository, standing, now))
    at = pd.Timestamp(now, unit="s", tz="UTC")
    vms = [str(vm) for vm in good["vm"].unique()]
    proved = read.proved(catalog)
    kept = {str(vm) for vm in proved.loc[proved["gone"].isna(), "vm"]}
    reached = rpo(good, targets(config, sorted({*vms, *kept}), "rpo"), at, kept)
    measured = rto(read.evidence(catalog), proved)
    zone = local_zone()
    found = find(good, now, RECENT_DAYS, zone)
    looks = read.tier_use(catalog)
    outlook = capacity(good, standing, now, prices=config.price_tables(), looks=looks)
    brought = followed.storage_gains(catalog, followed.Sight(repository, config, good, now))
    wondered = outcomes(repository, config, good, now, read.held_before(catalog, now))
    sections = {
        "Capacity": tables.markdown(tables.capacity(outlook)),
        "Cost of tiers": tables.markdown(tables.costs(outlook), "No tier has a price."),
        "What if": tables.markdown(tables.scenarios(wondered, ""), "Nothing to try this on: no backup is known."),
        "Age of the newest point": tables.markdown(tables.rpo(reached)),
        "Time to restore": tables.markdown(tables.rto(measured)),
        f"Strange in the last {RECENT_DAYS} days": tables.markdown(tables.anomalies(found), "Nothing."),
        "Not judged": tables.markdown(tables.unjudged(unjudged(good, now)), "Every disk is."),
        "What followed": tables.markdown(tables.consequences(catalog.anomalies()), "Nothing had consequences."),
        "What will change": tables.markdown(tables.outlook(forecast_change(good, now, zone))),
        "What advice on storing brought": tables.markdown(tables.storage_gains(brought), "None was given."),
        "VMs": tables.markdown(tables.vms(overview(good))),
    }
    figures = _tier_plots(good, standing, now) | {
        "change-calendar": plots.change_calendar(good),
        "newest-points": plots.rpo_timeline(_recent(good, at), targets(config, vms, "rpo"), at, worst_first(reached)),
        "time-to-restore": plots.rto(measured, targets(config, vms, "rto")),
    }
    incident = strongest(found)
    damaged = _damaged_newest(repository) if any(gain.damaged for gain in brought) else set()
    if (changes := _heat_map(repository, good, incident)) is not None:
        figures["heat-map"] = plots.heat(changes)
        damaged |= {_damage(changes.vm, point, changes.disk, told) for point, told in changes.damaged.items()}
    if any(tier.costs for tier in outlook):
        figures["cost-of-tiers"] = plots.tier_costs(outlook)
    if wondered:
        figures["what-if"] = plots.scenarios(wondered, "")
    if incident is not None:
        figures["incident"] = plots.incident(good, incident.vm, incident.disk, incident.together)
    return Analysis(sections, {name: png(figure) for name, figure in figures.items()}, tuple(sorted(damaged)))


def _damage(vm: str, point: str, disk: str, told: str) -> str:
    return f"{vm}: point {point}, disk {disk}: {told}"


def _damaged_newest(repository: Repository) -> set[str]:
    return {_damage(*place, told) for place, told in damage_of_newest(repository).items()}


def _heat_map(repository: Repository, good: pd.DataFrame, incident: Incident | None) -> HeatMap | None:
    """Where the disk of the strongest incident changes, else the one that changed most; none without two points."""
    if good.empty:
        return None
    changed = good.astype({"vm": "object", "disk": "object"}).groupby(["vm", "disk"])["bytes_changed"].sum()
    vm, disk = (incident.vm, incident.disk) if incident else changed.sort_values().index[-1]
    try:
        return heat_map(repository, str(vm), str(disk), most_points=HEAT_POINTS)
    except PermanentError:  # it has one point alone
        return None


def _tier_plots(good: pd.DataFrame, standing: list[TierUse], now: float) -> dict[str, Figure]:
    return {
        f"tier-{one.tier}": plots.tier_fill(
            good, fill_of(good, one.tier, one.used, now), None if one.free is None else one.used + one.free
        )
        for one in standing
    }


def _recent(good: pd.DataFrame, at: pd.Timestamp) -> pd.DataFrame:
    return good[good["started"] > at - pd.Timedelta(days=RECENT_DAYS)]
