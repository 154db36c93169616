"""`vmcellar what-if`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmcellar.cli.historyframe import HistoryOption, SampleOption, Source, read_parts
from vmcellar.cli.output import console, print_json
from vmcellar.cli.session import PANEL_LOOK, ConfigOption, JsonOption, read_config
from vmcellar.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmcellar.config.prices import Prices

RULES = "as in hot,warm:14d,cold:30d"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("what-if", rich_help_panel=PANEL_LOOK)(what_if)


def what_if(
    ctx: typer.Context,
    keep: Annotated[list[str], typer.Option(metavar="TIME", help="Keep points for so long, as in 30d; give several.")],
    tiers: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Where bytes lie by age, as in hot,warm:14d,cold:30d; give several."),
    ] = None,
    every: Annotated[
        float, typer.Option(min=0.1, max=100, metavar="N", help="One backup for N that are taken now.")
    ] = 1.0,
    bandwidth: Annotated[
        list[str] | None,
        typer.Option(metavar="RATE", help="The most that a run may read a second, as in 50MiB/s; give several."),
    ] = None,
    prices: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER=PRICE", help="Per GB and month, or a class of AWS such as DEEP_ARCHIVE."),
    ] = None,
    history: HistoryOption = None,
    sample: SampleOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the same history would hold and cost, and how long runs would take, under other settings.

    Every --keep is tried with every --tiers and every --bandwidth. What dropped points share with kept ones stays in
    truth, so what is held is a lower bound. A run takes as long as it took, or longer where the bandwidth is less than
    it had. "Late" are runs that would still be at work when the next one is due. Prices are those of the configuration,
    unless they are given.
    """
    from vmcellar.analysis import whatif
    from vmcellar.cli.render.catalog import scenarios_json, scenarios_table

    tables = _prices(ctx, config, prices or [])
    rules = [_rule(text, tables) for text in tiers or ["hot"]]
    rates: list[str | None] = [*bandwidth] if bandwidth else [None]
    wanted = [
        whatif.Scenario(_name(age, text, every, rate), _days(age), rule, every, _rate(rate))
        for text, rule in zip(tiers or ["hot"], rules, strict=True)
        for age in keep
        for rate in rates
    ]
    parts = []  # all of the history, as what is held may be old
    for frame, now in read_parts(ctx, Source(config, history, sample)):
        parts.append(whatif.past_of(frame, now))
    if not parts:
        raise PermanentError("nothing to try this on: no backup is known", hint="`vmcellar backup VM` makes one")
    past = whatif.joined(parts)
    outcomes = [whatif.outcome(past, scenario, tables) for scenario in wanted]
    if as_json:
        print_json(scenarios_json(outcomes))
        return
    console().print(scenarios_table(outcomes))


def _name(age: str, tiers: str, every: float, rate: str | None) -> str:
    often = "" if every == 1 else f", one for {every:g}"
    return f"{age} on {tiers}{often}" + ("" if rate is None else f", {rate}")


def _rate(text: str | None) -> float | None:
    from vmcellar.config.units import parse_rate

    try:
        return None if text is None else float(parse_rate(text))
    except ValueError as error:
        raise UsageError(f"--bandwidth {text}: {error}") from error


def _rule(text: str, prices: Mapping[str, Prices]) -> tuple[tuple[str, float], ...]:
    rule = []
    for part in text.split(","):
        tier, _, age = part.strip().partition(":")
        rule.append((tier, _days(age) if age else 0.0))
        if not tier:
            raise UsageError(f"--tiers {text!r}: a tier without a name", hint=RULES)
        if tier not in prices:
            raise UsageError(
                f"--tiers {text}: no price is known of {tier}", hint=f"add --prices {tier}=0.02, or its tier"
            )
    names, ages = zip(*rule, strict=True)
    if ages[0] != 0 or list(ages) != sorted(set(ages)):
        raise UsageError(f"--tiers {text}: the first tier has no age, and ages must rise from there on", hint=RULES)
    if len(set(names)) < len(names):
        raise UsageError(f"--tiers {text}: a tier is named twice", hint=RULES)
    return tuple(rule)


def _days(text: str) -> float:
    from vmcellar.config.units import parse_duration

    try:
        return parse_duration(text) / 86400
    except ValueError as error:
        raise UsageError(f"{text}: {error}") from error


def _prices(ctx: typer.Context, config: Path | None, given: list[str]) -> dict[str, Prices]:
    from vmcellar.config.prices import AWS_PRICES, Prices

    try:
        found = read_config(ctx, config).price_tables()
    except UsageError:
        if config is not None:
            raise
        found = {"hot": Prices()}
    for text in given:
        tier, _, price = text.partition("=")
        if not tier:
            raise UsageError(f"--prices {text}: names no tier", hint="as in warm=0.02 or cold=DEEP_ARCHIVE")
        try:
            found[tier] = AWS_PRICES[price] if price in AWS_PRICES else Prices(gb_month=float(price))
        except ValueError as error:
            raise UsageError(
                f"--prices {text}: not a price", hint=f"a number, or one of {', '.join(AWS_PRICES)}"
            ) from error
    return found
