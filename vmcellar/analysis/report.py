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
from vmcellar.analysis.heat import heat_map
from vmcellar.analysis.objectives import rpo, rto
from vmcellar.analysis.overview import overview
from vmcellar.analysis.picks import strongest, worst_first
from vmcellar.analysis.quality import findings, quarantine, validate
from vmcellar.analysis.source import targets
from vmcellar.catalog.rebuild import refresh
from vmcellar.errors import VmcellarError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmcellar.analysis.capacity import TierUse
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
    Expectations said of the whole (`ok`: no row is bad). `markdown` tells it.
    """

    runs: int
    rows: int
    bad: int
    ok: bool
    markdown: str


@dataclass(frozen=True, slots=True)
class Analysis:
    """`sections` are titles and their Markdown, `images` names (letters and dashes) and PNGs."""

    sections: dict[str, str]
    images: dict[str, bytes]

    @property
    def markdown(self) -> str:
        """All sections on one page."""
        return "\n\n".join(f"## {title}\n\n{text}" for title, text in self.sections.items())


def check(catalog: Catalog, repository: Repository) -> Quality:
    """Bring the catalog up to the repository and judge its history. The first call of a process loads Great
    Expectations, 10 s; one at a time in a process.
    """
    refresh(catalog, repository)
    frame = read.history(catalog)
    now = repository.clock()
    _, bad = quarantine(frame, now)
    verdict = validate(frame, now)
    shown = bad[["vm", "disk", "started", "run_id", "reasons"]].head(BAD_MOST)
    text = "\n\n".join(
        [
            f"{len(frame)} rows of {frame['run_id'].nunique()} runs; {len(bad)} are not used.",
            tables.markdown(tables.quality(findings(frame, now)), "Every rule is met by every row."),
            tables.markdown(shown, ""),
        ]
    )
    return Quality(int(frame["run_id"].nunique()), len(frame), len(bad), verdict.ok, text.strip())


def analyse(catalog: Catalog, repository: Repository, config: Config) -> Analysis:
    """Capacity, RPO, RTO, what is strange and what is coming, by the good rows of the catalog; notes the use of tiers.

    Asks every tier what lies on it, and reads maps of one disk's points. Raises what that and the catalog raise.
    """
    now = repository.clock()
    standing = tiers_now(repository, config, now)
    catalog.add(use_rows(catalog.repository, standing, now))
    good, _ = quarantine(read.history(catalog), now)
    at = pd.Timestamp(now, unit="s", tz="UTC")
    vms = [str(vm) for vm in good["vm"].unique()]
    reached = rpo(good, targets(config, vms, "rpo"), at)
    measured = rto(read.evidence(catalog), read.points(catalog))
    found = find(good, now, RECENT_DAYS)
    looks = read.tier_use(catalog)
    outlook = capacity(good, standing, now, prices=config.price_tables(), looks=looks)
    brought = followed.storage_gains(catalog, followed.Sight(repository, config, good, now))
    sections = {
        "Capacity": tables.markdown(tables.capacity(outlook)),
        "Cost of tiers": tables.markdown(tables.costs(outlook), "No tier has a price."),
        "Age of the newest point": tables.markdown(tables.rpo(reached)),
        "Time to restore": tables.markdown(tables.rto(measured)),
        f"Strange in the last {RECENT_DAYS} days": tables.markdown(tables.anomalies(found), "Nothing."),
        "What followed": tables.markdown(tables.consequences(catalog.anomalies()), "Nothing had consequences."),
        "What will change": tables.markdown(tables.outlook(forecast_change(good, now))),
        "What advice on storing brought": tables.markdown(tables.storage_gains(brought), "None was given."),
        "VMs": tables.markdown(tables.vms(overview(good))),
    }
    figures = _tier_plots(good, standing, now) | {
        "change-calendar": plots.change_calendar(good),
        "newest-points": plots.rpo_timeline(_recent(good, at), targets(config, vms, "rpo"), at, worst_first(reached)),
        "time-to-restore": plots.rto(measured, targets(config, vms, "rto")),
    }
    incident = strongest(found)
    figures |= _heat_plot(repository, good, incident)
    if any(tier.costs for tier in outlook):
        figures["cost-of-tiers"] = plots.tier_costs(outlook)
    if incident is not None:
        figures["incident"] = plots.incident(good, incident.vm, incident.disk, incident.together)
    return Analysis(sections, {name: png(figure) for name, figure in figures.items()})


def _heat_plot(repository: Repository, good: pd.DataFrame, incident: Incident | None) -> dict[str, Figure]:
    """Where the disk of the strongest incident changes, else the one that changed most; none without two points."""
    if good.empty:
        return {}
    changed = good.astype({"vm": "object", "disk": "object"}).groupby(["vm", "disk"])["bytes_changed"].sum()
    vm, disk = (incident.vm, incident.disk) if incident else changed.sort_values().index[-1]
    try:
        return {"heat-map": plots.heat(heat_map(repository, str(vm), str(disk), most_points=HEAT_POINTS))}
    except VmcellarError:  # a map of that disk is damaged, or it has one point alone
        return {}


def _tier_plots(good: pd.DataFrame, standing: list[TierUse], now: float) -> dict[str, Figure]:
    return {
        f"tier-{one.tier}": plots.tier_fill(
            good, fill_of(good, one.tier, one.used, now), None if one.free is None else one.used + one.free
        )
        for one in standing
    }


def _recent(good: pd.DataFrame, at: pd.Timestamp) -> pd.DataFrame:
    return good[good["started"] > at - pd.Timedelta(days=RECENT_DAYS)]
