"""On PYTHONPATH of the soak's flow runs: VMs that are image files stand beside libvirt's. See `bench.soak_source`."""

import os

if os.environ.get("SOAK_FOLDER"):
    from bench.soak_source import install

    install()
