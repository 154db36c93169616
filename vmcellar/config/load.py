"""Finds and reads `vmcellar.yaml`, and turns what is wrong with it into messages with line, path, value and fix."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vmcellar.config.jobs import BackupJob, KeepByAge
from vmcellar.config.model import Config
from vmcellar.config.problems import WRONG_AT, ConfigError, KeyPath, Problem, dotted
from vmcellar.config.secrets import SecretReference
from vmcellar.config.yamlmarks import MarkedYaml, read_yaml
from vmcellar.errors import UsageError

ENVIRONMENT = "VMCELLAR_CONFIG"
SYSTEM_FILE = Path("/etc/vmcellar/vmcellar.yaml")
LOCAL_FILE = Path("vmcellar.yaml")

_VALUE_SHOWN = 60
_SCHEMA_HINT = "`vmcellar config schema` shows every key and what it takes"
_SECRETS = frozenset({"key", "notify", "ping", "access_key", "secret_key", "url", "password"})
_PLAIN_WORDS = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "tuple_type": "must be a list: one line per item, each with a dash",
    "model_type": "must be a section: keys below it, each indented",
    "dict_type": "must be a section: keys below it, each indented",
    "path_type": "must be a path",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty: write it, or leave its entry out",
}


def find_config(chosen: Path | None = None) -> Path:
    """The file to use: `chosen`, else $VMCELLAR_CONFIG, ./vmcellar.yaml, /etc/vmcellar/vmcellar.yaml.

    UsageError when a named file does not exist, or none is found.
    """
    named = chosen or (Path(os.environ[ENVIRONMENT]) if os.environ.get(ENVIRONMENT) else None)
    if named is not None:
        origin = "--config" if chosen else f"${ENVIRONMENT}"
        if named.is_dir():
            raise folder_error(named, origin)
        if named.exists() and not named.is_file():
            raise UsageError(
                f"configuration file {named} ({origin}): not a regular file", hint="it is read more than once"
            )
        if not named.exists():
            raise UsageError(f"configuration file {named} ({origin}): no such file", hint="`vmcellar init` writes one")
        return named.absolute()
    for path in (LOCAL_FILE, SYSTEM_FILE):
        if path.is_file():
            return path.absolute()
    raise UsageError(
        f"no configuration: neither ./{LOCAL_FILE} nor {SYSTEM_FILE} exists",
        hint="write one with `vmcellar init`, or name one with --config FILE",
    )


def folder_error(path: Path, origin: str) -> UsageError:
    """The error for a directory in the place of the file."""
    return UsageError(
        f"configuration file {path} ({origin}): this is a directory",
        hint=f"name the file in it, such as {path / LOCAL_FILE}",
    )


def load_config(path: Path) -> Config:
    """The configuration in `path`; UsageError with file and line of everything that is wrong in it.

    Relative paths in it are taken from the file's own folder.
    """
    return load_marked(path)[0]


def load_marked(path: Path) -> tuple[Config, MarkedYaml]:
    """The same, with the line of each key of the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: this is not UTF-8 text: {error}", hint="save the file as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="check the path, and that you may read it") from error
    marked = read_yaml(text, path)
    return _validated(marked, path), marked


def parse_config(text: str, source: Path) -> Config:
    """The configuration in `text`; messages and relative paths take `source` as the file."""
    return _validated(read_yaml(text, source), source)


def _validated(marked: MarkedYaml, source: Path) -> Config:
    if not isinstance(marked.data, dict):
        said, fix = "the file must be a section of keys", "see `vmcellar config schema`"
        raise ConfigError(f"{source}:1: {said}", hint=fix, problems=(Problem(1, "", "", said, fix, said),))
    try:
        config = Config.model_validate(marked.data)
    except ValidationError as error:
        raise _explain(error, marked) from None
    config = _with_absolute_paths(config, source.absolute().parent)
    config._source = source
    return config


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "vmcellar.yaml"}


def shown_config(config: Config) -> dict[str, Any]:
    """All values in force as plain data that is a configuration again, defaults filled in; secrets stay references."""
    shown: dict[str, Any] = json.loads(config.model_dump_json(exclude_none=True, context="shown"))
    shown["landing"]["budget"] = config.landing.budget_bytes()
    return shown


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def within(secret: SecretReference) -> SecretReference:
        return secret if secret.file is None else secret.model_copy(update={"file": folder / secret.file})

    return config.model_copy(
        update={
            "state": folder / config.state,
            "catalog": config.catalog.within(folder),
            "scratch": folder / config.scratch,
            "libvirt": config.libvirt.within(folder),
            "key": config.key and within(config.key),
            "notify": tuple(within(each) for each in config.notify),
            "ping": config.ping and within(config.ping),
            "landing": config.landing.model_copy(update={"dir": folder / config.landing.dir}),
            "tiers": config.tiers.within(folder),
        }
    )


def _explain(error: ValidationError, marked: MarkedYaml) -> ConfigError:
    found = (_explain_one(each, marked) for each in error.errors(include_url=False))
    problems = tuple(sorted(found, key=lambda problem: (problem.line, problem.text)))
    lines = [f"{marked.source}:{problem.line}: {problem.text}" for problem in problems]
    return ConfigError("\n".join(lines), hint=_SCHEMA_HINT, problems=problems)


def _explain_one(problem: ErrorDetails, marked: MarkedYaml) -> Problem:
    more = problem["ctx"] if problem["type"] == WRONG_AT else {}
    known, line = marked.locate((*problem["loc"], *more.get("place", ())))
    if problem["type"] == "extra_forbidden":
        said, fix = f'unknown key "{known[-1]}"', _near_keys(known)
        return Problem(line, dotted(known), "", said, fix, f"{dotted(known)}: {said}; {fix}")
    if problem["type"] == "missing":
        key = dotted((*known, problem["loc"][-1]))
        return Problem(line, key, "", "is missing", "add the key", f"{key} is missing: add the key")
    said = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    said = said.replace("String should match pattern", "must match", 1)
    said = _PLAIN_WORDS.get(problem["type"], said)
    if more.get("first"):
        said = said.format(line=marked.locate(more["first"])[1])
    value = _shown_value(known, marked, problem["input"])
    text = f"{dotted(known) or 'the file'}{f' ({value})' if value else ''}: {said}"
    about, _, fix = said.partition("; ")
    return Problem(line, dotted(known), value, about, fix or _SCHEMA_HINT, text)


def _near_keys(path: KeyPath) -> str:
    valid = sorted(_section_at(path[:-1]).model_fields)
    near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
    return f'did you mean "{near[0]}"?' if near else f"valid keys here: {', '.join(valid)}"


def _section_at(path: KeyPath) -> type[BaseModel]:
    """The section whose keys stand at `path`."""
    section: type[BaseModel] = Config
    for element in path:
        if element == "backups":
            section = BackupJob
        elif element == "retention":
            section = KeepByAge
        elif isinstance(element, str):
            annotation = section.model_fields[element].annotation
            members = getattr(annotation, "__args__", (annotation,))
            section = next(m for m in members if isinstance(m, type) and issubclass(m, BaseModel))
    return section


def _shown_value(path: KeyPath, marked: MarkedYaml, part: object) -> str:
    """What stands at `path`, or the `part` of a section there that was looked at."""
    if not path or not _SECRETS.isdisjoint(path):
        return ""  # somebody may have written the secret itself here
    value = marked.value(path)
    if isinstance(value, dict | list):
        value = part
    if isinstance(value, dict | list | tuple):
        return ""
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _VALUE_SHOWN else text[:_VALUE_SHOWN] + "…"
