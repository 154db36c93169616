"""One backup or restore with the engine alone, in a process of its own; prints JSON with the engine's own seconds.

python -m bench.engine_once CONFIG backup VM
python -m bench.engine_once CONFIG restore POINT DIRECTORY
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmcellar.backup import pipeline
from vmcellar.backup.model import BackupRequest
from vmcellar.engine import open_engine
from vmcellar.restore.report import RestoreTarget
from vmcellar.restore.restore import restore_point


def backup(config: Path, vm: str) -> dict[str, Any]:
    """Back up one VM."""
    engine = open_engine(config)
    begun = time.monotonic()
    point = pipeline.run(engine, BackupRequest(vm))
    return {**asdict(point), "took": time.monotonic() - begun}


def restore(config: Path, name: str, directory: Path) -> dict[str, Any]:
    """Restore one point to qcow2."""
    repository = open_engine(config).repository
    begun = time.monotonic()
    restore_point(repository, repository.point(name), RestoreTarget(directory))
    return {"took": time.monotonic() - begun}


def main() -> None:
    """Do what the arguments say."""
    config, what, name, *rest = sys.argv[1:]
    result = backup(Path(config), name) if what == "backup" else restore(Path(config), name, Path(rest[0]))
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
