"""RBD images as places to restore to: made when they are missing, and who has one open.

The cluster is that of $CEPH_CONF, else of /etc/ceph/ceph.conf, as for QEMU, which does the writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from vmcellar.errors import PermanentError

_SECONDS = "30"


def make_missing(pool: str, image: str, size: int) -> bool:
    """Make the image with `size` bytes unless it is there; whether it was made."""
    with _pool(pool, image) as (binding, _, opened):
        if image in binding.RBD().list(opened):
            return False
        binding.RBD().create(opened, image, size)
        return True


def watchers(pool: str, image: str) -> list[str]:
    """In words, the clients that have the image open."""
    with _pool(pool, image) as (binding, own, opened), binding.Image(opened, image, read_only=True) as found:
        return [f"client {one['addr']} has it open" for one in found.watchers_list() if one["id"] != own]


@contextmanager
def _pool(pool: str, image: str) -> Iterator[tuple[Any, int, Any]]:
    """The binding, our client's id, and the pool; PermanentError for whatever goes wrong in the block."""
    try:
        import rados  # noqa: PLC0415  (a system package, needed for RBD alone)
        import rbd  # noqa: PLC0415  (the same)
    except ImportError as error:
        raise PermanentError(f"rbd:{pool}/{image}: {error}", hint="apt-get install python3-rbd") from error
    limits = {"client_mount_timeout": _SECONDS, "rados_mon_op_timeout": _SECONDS, "rados_osd_op_timeout": _SECONDS}
    try:
        with ExitStack() as stack:
            cluster = stack.enter_context(rados.Rados(conffile=os.environ.get("CEPH_CONF", ""), conf=limits))
            opened = stack.enter_context(cluster.open_ioctx(pool))
            yield rbd, cluster.get_instance_id(), opened
    except (rados.Error, rbd.Error) as error:
        raise PermanentError(
            f"rbd:{pool}/{image}: {error}", hint=f"check `rbd info {pool}/{image}` with the same $CEPH_CONF"
        ) from error
