"""Looking at the history as tasks. pandas, matplotlib and Great Expectations load when they run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.control import engine_of

if TYPE_CHECKING:
    from vmcellar.analysis.report import Analysis, Quality


@task(name="check-history", cache_policy=NO_CACHE)
def check_history(config: str) -> Quality:
    """Bring the catalog up to the repository, and judge its rows."""
    from vmcellar.analysis.report import check  # noqa: PLC0415

    engine = engine_of(config)
    return check(engine.catalog, engine.repository)


@task(name="analyse-history", cache_policy=NO_CACHE)
def analyse_history(config: str) -> Analysis:
    """Tables and plots of the good rows."""
    from vmcellar.analysis.report import analyse  # noqa: PLC0415

    engine = engine_of(config)
    return analyse(engine.catalog, engine.repository, engine.config)
