"""`vmcellar config check|show|schema`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vmcellar.cli.output import note, print_json
from vmcellar.cli.session import PANEL_START, ConfigOption, JsonOption, config_path, read_config

if TYPE_CHECKING:
    from vmcellar.cli.checks.remarks import Remark
    from vmcellar.config.problems import ConfigError
    from vmcellar.config.yamlmarks import MarkedYaml

config_app = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the app."""
    app.add_typer(config_app, name="config", rich_help_panel=PANEL_START)


@config_app.command()
def check(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Validate the file; every mistake is named with its line and the fix."""
    from vmcellar.config.load import load_marked
    from vmcellar.config.problems import ConfigError

    path = config_path(ctx, config)
    try:
        found, marked = load_marked(path)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"file": str(path), "valid": False, "errors": _errors(path, error), "warnings": []})
        raise typer.Exit(error.exit_code) from error
    from vmcellar.cli.checks.remarks import remarks

    said = list(remarks(found))
    if as_json:
        print_json({"file": str(path), "valid": True, "errors": [], "warnings": _warnings(marked, said)})
        return
    jobs = len(found.backups)
    sys.stdout.write(f"{found.source}: valid, {jobs} backup job{'' if jobs == 1 else 's'}\n")
    for remark in said:
        note(f"{remark.level}: {remark.said}{f': {remark.fix}' if remark.fix else ''}")


def _errors(path: Path, error: ConfigError) -> list[dict[str, Any]]:
    return [
        {
            "file": str(path),
            "line": problem.line,
            "key": problem.key,
            "value": problem.value,
            "problem": problem.said,
            "fix": problem.fix,
        }
        for problem in error.problems
    ]


def _warnings(marked: MarkedYaml, said: list[Remark]) -> list[dict[str, Any]]:
    """`level` is `note` where nothing has to be done; the key is the part of it that the file holds."""
    from vmcellar.config.problems import dotted

    return [
        {
            "level": remark.level,
            "file": marked.source,
            "line": marked.locate(remark.at)[1],
            "key": dotted(marked.locate(remark.at)[0]),
            "problem": remark.said,
            "fix": remark.fix,
        }
        for remark in said
    ]


@config_app.command()
def show(ctx: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Print all values in force, with the defaults filled in. Secrets stay references."""
    from vmcellar.config.load import shown_config

    values = shown_config(read_config(ctx, config))
    if as_json:
        print_json(values)
        return
    import yaml

    sys.stdout.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


@config_app.command()
def schema() -> None:
    """Print the JSON schema of the file, for editors."""
    from vmcellar.config.load import json_schema

    print_json(json_schema())
