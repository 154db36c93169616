"""One backup in a process of its own, which a test can have killed at a named place: `python -m tests.proof.runner`.

    runner CONFIG VM [--start-paused] [--mode MODE] [--job NAME]
        [--at MODULE:NAME --call N --when before|after --signal NAME] [--reading N]

The named function is wrapped here, so the product has no hook for it. The last line of standard output is JSON:
`point` or `error`, `read` (bytes that exports read in this process, landed segments of an earlier process not counted),
`reused` (segments that had landed before) and `peak` (the most memory this process ever used, VmHWM, in bytes).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest, ExportResult
from vmcellar.cli.signals import cancel_on_signals
from vmcellar.config.load import load_config
from vmcellar.engine import Engine
from vmcellar.errors import VmcellarError
from vmcellar.repository.repository import Repository
from vmcellar.sources.libvirt_source import LibvirtSource

RESERVE = 8 << 20


def main() -> int:
    """Run the backup; the exit code is that of the error, as the command line has it."""
    options = _options()
    pipeline.READING = options.reading
    exports: list[ExportResult] = []
    _wrap("vmcellar.backup.stages:export", lambda call: _recording(call, exports))
    if options.at:
        _wrap(options.at, lambda call: _stopping(call, options.call, options.when, getattr(signal, options.signal)))
    report: dict[str, Any] = {}
    code = 0
    try:
        config = load_config(options.config)
        source = LibvirtSource(config.libvirt.uri, config.scratch, RESERVE, remote=config.libvirt.remote)
        engine = Engine(config, Repository.open(config), source)
        with cancel_on_signals() as cancel:
            request = BackupRequest(options.vm, options.mode, options.job, start_paused=options.start_paused)
            report["point"] = pipeline.run(engine, request, cancel=cancel).id
    except VmcellarError as error:
        report["error"] = f"{type(error).__name__}: {error}"
        code = error.exit_code
    report["read"] = sum(result.bytes_read for result in exports if not result.reused)
    report["reused"] = sum(result.reused for result in exports)
    report["peak"] = _peak()
    print(json.dumps(report))
    return code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("vm")
    parser.add_argument("--start-paused", action="store_true")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--job", default="")
    parser.add_argument("--at", default="")
    parser.add_argument("--call", type=int, default=1)
    parser.add_argument("--when", choices=("before", "after"), default="before")
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--reading", type=int, default=pipeline.READING, help="segments that are read at once")
    return parser.parse_args()


def _wrap(place: str, wrapper: Callable[[Any], Any]) -> None:
    module, _, name = place.partition(":")
    *owners, last = name.split(".")
    holder = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(holder, last, wrapper(getattr(holder, last)))


def _recording(call: Any, exports: list[ExportResult]) -> Any:
    @functools.wraps(call)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        exports.append(call(*arguments, **options))
        return exports[-1]

    return wrapped


def _stopping(call: Any, number: int, when: str, kind: signal.Signals) -> Any:
    lock, calls = threading.Lock(), 0

    @functools.wraps(call)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            due = calls == number
        if due and when == "before":
            _strike(kind)
        result = call(*arguments, **options)
        if due and when == "after":
            _strike(kind)
        return result

    return wrapped


def _strike(kind: signal.Signals) -> None:
    print("struck", file=sys.stderr, flush=True)
    os.kill(os.getpid(), kind)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    sys.exit(main())
