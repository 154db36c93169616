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
from vmcellar.config.secrets import SecretReference
from vmcellar.config.yamlmarks import KeyPath, MarkedYaml, read_yaml
from vmcellar.errors import UsageError

ENVIRONMENT = "VMCELLAR_CONFIG"
SYSTEM_FILE = Path("/etc/vmcellar/vmcellar.yaml")
LOCAL_FILE = Path("vmcellar.yaml")

_VALUE_SHOWN = 60
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
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: this is not UTF-8 text: {error}", hint="save the file as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="check the path, and that you may read it") from error
    return parse_config(text, path)


def parse_config(text: str, source: Path) -> Config:
    """The configuration in `text`; messages and relative paths take `source` as the file."""
    marked = read_yaml(text, source)
    if not isinstance(marked.data, dict):
        raise UsageError(f"{source}:1: the file must be a section of keys", hint="see `vmcellar config schema`")
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


def _explain(error: ValidationError, marked: MarkedYaml) -> UsageError:
    problems = sorted(_explain_one(problem, marked) for problem in error.errors(include_url=False))
    lines = [f"{marked.source}:{line}: {text}" for line, text in problems]
    return UsageError("\n".join(lines), hint="`vmcellar config schema` shows every key and what it takes")


def _explain_one(problem: ErrorDetails, marked: MarkedYaml) -> tuple[int, str]:
    known, line = marked.locate(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return line, _explain_unknown_key(known)
    if problem["type"] == "missing":
        return line, f"{_dotted((*known, problem['loc'][-1]))} is missing: add the key"
    said = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)
    said = said.replace("String should match pattern", "must match", 1)
    said = _PLAIN_WORDS.get(problem["type"], said)
    return line, f"{_dotted(known) or 'the file'}{_shown_value(known, marked)}: {said}"


def _explain_unknown_key(path: KeyPath) -> str:
    valid = sorted(_section_at(path[:-1]).model_fields)
    near = difflib.get_close_matches(str(path[-1]), valid, n=1, cutoff=0.5)
    fix = f'did you mean "{near[0]}"?' if near else f"valid keys here: {', '.join(valid)}"
    return f'{_dotted(path)}: unknown key "{path[-1]}"; {fix}'


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


def _shown_value(path: KeyPath, marked: MarkedYaml) -> str:
    if not path or not _SECRETS.isdisjoint(path):
        return ""  # somebody may have written the secret itself here
    value = marked.value(path)
    if isinstance(value, dict | list):
        return ""
    text = "nothing" if value is None else str(value)
    return f" ({text if len(text) <= _VALUE_SHOWN else text[:_VALUE_SHOWN] + '…'})"


def _dotted(path: KeyPath) -> str:
    text = ""
    for element in path:
        text += f"[{element}]" if isinstance(element, int) else f".{element}" if text else element
    return text
