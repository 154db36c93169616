"""`vmcellar` as a page has it, with the places of this machine that no option names below one folder: a process of its
own, `python -m tests.docs.program`.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from tests.cli.conftest import quick_cost

FOLDER = "TYPED_FOLDER"
"""The variable that names the folder."""


def places(folder: Path) -> dict[str, object]:
    """What stands for what: a configuration for all users, libvirt's images, and keys that open quickly."""
    images = folder / "var/lib/libvirt/images"
    return {
        "vmcellar.config.load.SYSTEM_FILE": folder / "etc/vmcellar/vmcellar.yaml",
        "vmcellar.cli.commands.restore.IMAGES": images,
        "vmcellar.cli.commands.boot.IMAGES": images,
        "vmcellar.crypto.passphrase.Argon2Cost": quick_cost,
    }


def main() -> None:
    """Run the command line with these places."""
    for name, value in places(Path(os.environ[FOLDER])).items():
        module, _, attribute = name.rpartition(".")
        setattr(import_module(module), attribute, value)
    import_module("vmcellar.cli.main").main()


if __name__ == "__main__":
    main()
