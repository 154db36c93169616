"""The commented `vmcellar.yaml` that `vmcellar init` writes."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from vmcellar.errors import PermanentError, UsageError
from vmcellar.folders import sync_folder

_TEMPLATE = """\
# Configuration of vmcellar, explained in docs/configuration.md.
# `vmcellar config check` checks this file, `vmcellar config schema` prints every key.

tiers:
  hot: {hot}   # the repository: packs, index, points and keys
#  warm: /srv/disks            # packs that only older points need, and a mirror of the rest: docs/tiers.md
#  cold: s3://bucket/prefix
# placement: {{hot: 7d, warm: 30d, cold: rest}}   # then `vmcellar tiers move`, once a day

{key}
# libvirt:
#   uri: qemu:///system

# Runs in progress and the index cache; may be lost without losing a backup.
state: {state}

# Scratch files of running backup jobs: QEMU's user must be able to write here, and it must not fill up.
# scratch: /var/lib/libvirt/vmcellar

# Disk bytes on their way from the VM to the packs. Best on a tmpfs of its own:
#   mount -t tmpfs -o huge=within_size,mode=0700,size=4g vmcellar-landing /run/vmcellar-landing
# landing:
#   dir: /run/vmcellar-landing
#   budget: 2GiB

# limits:
#   vms: 2            # VMs at once in one job
#   segment: 1GiB     # the unit of retry

# backups:
#   - name: nightly
#     schedule: "0 2 * * *"
#     domains: ["*"]             # names, globs, tag:NAME
#     retention: {{daily: 7, weekly: 4, monthly: 12}}
"""


def render_template(hot: str, key: str, state: Path) -> str:
    """The text of a new file; `key` is its `key:` section, as text with a newline at its end."""
    return _TEMPLATE.format(hot=quoted(hot), key=key, state=quoted(state))


def quoted(path: Path | str) -> str:
    """A value as one YAML scalar, quoted only where it must be."""
    return yaml.safe_dump(str(path), width=1 << 20, allow_unicode=True).removesuffix("...\n").strip()


def write_new_file(path: Path, text: str) -> None:
    """Write a file that must not exist yet: UsageError when it does, PermanentError when it cannot be written.

    Whole or not at all, and durable: half a configuration would be in the way of the next call.
    """
    building = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_durably(building, text)
            os.link(building, path)  # never replaces
        finally:
            building.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists already; it was left as it is", hint="edit it, or name another file with --config FILE"
        ) from error
    except OSError as error:
        raise PermanentError(
            f"{path}: {error.strerror}", hint="run as root, or name another file with --config"
        ) from error


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
