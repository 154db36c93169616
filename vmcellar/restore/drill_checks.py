"""The checks of a drill inside the running guest, as the policy names them."""

from __future__ import annotations

import shlex
import socket
import time
from math import inf

import libvirt

from vmcellar.config.drill import Drill, DrillCommand, DrillCount, DrillFile
from vmcellar.progress import CancelToken
from vmcellar.repository.evidence import Check
from vmcellar.sources.guest_agent import Agent, AgentError

_SHOWN = 200
_CONNECT_SECONDS = 5.0
_COUNT_SECONDS = 300.0


def checks_of(domain: libvirt.virDomain, rules: Drill, *, agent: bool, cancel: CancelToken) -> list[Check]:
    """All checks that the rules name, each done or named as not done. CancelledError when stopped."""
    inside = Agent(domain)
    found = [_clock(inside, rules.clock)] if agent else []
    for command in rules.commands:
        cancel.check()
        found.append(_command(inside, command, cancel) if agent else _not_asked(f"command {command.run}"))
    for file in rules.files:
        cancel.check()
        found.append(_file(inside, file) if agent else _not_asked(f"file {file.path}"))
    for count in rules.counts:
        cancel.check()
        found.append(_files_below(inside, count, cancel) if agent else _not_asked(f"count {count.path}"))
    for port in rules.ports:
        cancel.check()
        found.append(_port(inside, port) if agent else _not_asked(f"port {port}"))
    return found


def _not_asked(name: str) -> Check:
    return Check(name, "an answer", "not asked: the guest agent does not answer", ok=False)


def _clock(agent: Agent, limit: float) -> Check:
    expected = f"at most {limit:.0f} s off"
    try:
        off = agent.time() - time.time()
    except AgentError as error:
        return Check("clock", expected, str(error), ok=False)
    return Check("clock", expected, f"{off:+.1f} s", ok=abs(off) <= limit)


def _command(agent: Agent, command: DrillCommand, cancel: CancelToken) -> Check:
    wanted = f"exit {command.exit}" + (f", output with {command.output!r}" if command.output else "")
    try:
        ran = agent.run(command.run, command.limit, cancel)
    except AgentError as error:
        return Check(f"command {command.run}", wanted, error.message, ok=False)
    ok = ran.code == command.exit and command.output in ran.output
    ended = "no exit code" if ran.code is None else f"exit {ran.code}"
    text = " ".join(ran.output.split())[:_SHOWN]
    return Check(f"command {command.run}", wanted, f"{ended}{f': {text}' if text else ''}", ok=ok)


def _file(agent: Agent, file: DrillFile) -> Check:
    try:
        found = agent.sha256(file.path)
    except AgentError as error:
        return Check(f"file {file.path}", f"sha256 {file.sha256}", error.message, ok=False)
    return Check(f"file {file.path}", f"sha256 {file.sha256}", f"sha256 {found}", ok=found == file.sha256)


def _files_below(agent: Agent, count: DrillCount, cancel: CancelToken) -> Check:
    """Regular files of the folder's own file system; none where there is no such folder."""
    name = f"count {count.path}"
    wanted = f"at least {count.least} files" + ("" if count.most is None else f", at most {count.most}")
    line = f"find {shlex.quote(count.path)} -xdev -type f 2>/dev/null | wc -l"
    try:
        ran = agent.run(line, _COUNT_SECONDS, cancel)
    except AgentError as error:
        return Check(name, wanted, error.message, ok=False)
    words = ran.output.split()
    if ran.code or not words or not words[-1].isdigit():
        return Check(name, wanted, " ".join(words)[:_SHOWN] or "no count", ok=False)
    number = int(words[-1])
    most = inf if count.most is None else count.most
    return Check(name, wanted, f"{number} files", ok=count.least <= number <= most)


def _port(agent: Agent, port: int) -> Check:
    try:
        addresses = agent.addresses()
    except AgentError as error:
        return Check(f"port {port}", "a connection", error.message, ok=False)
    problems = []
    for address in addresses:
        try:
            socket.create_connection((address, port), _CONNECT_SECONDS).close()
        except OSError as error:
            problems.append(f"{address}: {error}")
        else:
            return Check(f"port {port}", "a connection", f"{address} answers", ok=True)
    return Check(f"port {port}", "a connection", "; ".join(problems) or "the guest has no address", ok=False)
