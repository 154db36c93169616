"""YAML with line numbers: plain data, and where each key of it stands, from the node marks of PyYAML.

Nothing but YAML's own scalars, lists and mappings is built (the safe loader); a key that stands twice in one mapping is
an error, since YAML parsers silently keep the last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vmcellar.config.problems import ConfigError, KeyPath, Problem, dotted
from vmcellar.errors import UsageError

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class MarkedYaml:
    """What a file holds, and the line (from 1) of every key and list item in it."""

    source: str
    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def locate(self, path: KeyPath) -> tuple[KeyPath, int]:
        """The part of `path` that exists in the file, and its line.

        Elements that name no key are skipped: pydantic puts the names of union members between the keys.
        """
        known: KeyPath = ()
        for element in path:
            if (*known, element) in self.lines:
                known = (*known, element)
        return known, self.lines.get(known, 1)

    def value(self, path: KeyPath) -> Any:
        """The value at a path that `locate` gave."""
        value = self.data
        for element in path:
            value = value[element]
        return value


def read_yaml(text: str, source: Path | str) -> MarkedYaml:
    """Parse one document; ConfigError with file, line and column when it is no YAML."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return MarkedYaml(str(source), {})
        lines: dict[KeyPath, int] = {}
        return MarkedYaml(str(source), _build(loader, node, (), MarkedYaml(str(source), None, lines)), lines)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, source) from error
    except RecursionError as error:
        raise UsageError(
            f"{source}: too deeply nested, or an anchor refers to itself", hint="write out what *NAME stands for"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{source}: this is not YAML: {error}", hint="save the file as UTF-8 text") from error


def _build(loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, marked: MarkedYaml) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(loader, node, path, marked)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for number, child in enumerate(node.value):
            marked.lines[(*path, number)] = child.start_mark.line + 1
            items.append(_build(loader, child, (*path, number), marked))
        return items
    value = loader.construct_object(node)
    if isinstance(value, str) and _SURROGATE.search(value):
        line, fix = node.start_mark.line + 1, "write the letter itself, or its whole code, as in \\U0001F600"
        said = "half of a letter is escaped (\\uD800 to \\uDFFF), which is no text"
        problem = Problem(line, dotted(path), "", said, fix, said)
        raise ConfigError(f"{marked.source}:{line}: {said}", hint=fix, problems=(problem,))
    return value


def _build_mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: KeyPath, marked: MarkedYaml
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(_build(loader, key_node, path, marked))
        line = key_node.start_mark.line + 1
        if key in result:
            first, fix = marked.lines[(*path, key)], "keep one of the two"
            said = f'the key "{key}" stands twice (first in line {first})'
            problem = Problem(line, dotted((*path, key)), "", said, fix, said)
            raise ConfigError(f"{marked.source}:{line}: {said}", hint=fix, problems=(problem,))
        marked.lines[(*path, key)] = line
        result[key] = _build(loader, value_node, (*path, key), marked)
    return result


def _syntax_error(error: yaml.MarkedYAMLError, source: Path | str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else str(source)
    about = error.problem or error.context or "unreadable"
    fix = "check indentation, colons and quotes around this line"
    problem = Problem(mark.line + 1 if mark else 1, "", "", about, fix, about)
    return ConfigError(f"{where}: {about}", hint=fix, problems=(problem,))
