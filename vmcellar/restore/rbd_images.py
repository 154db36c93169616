"""RBD images as places to restore to: made when they are missing, and who has one open.

The cluster is that of $CEPH_CONF, else of /etc/ceph/ceph.conf, as for QEMU, which does the writing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
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
    with _pool(pool, image) as (binding, cluster, opened), binding.Image(opened, image, read_only=True) as found:
        own = cluster.get_instance_id()
        return [f"client {one['addr']} has it open" for one in found.watchers_list() if one["id"] != own]


def refuse_other_cluster(pool: str, image: str, hosts: Sequence[str]) -> None:
    """PermanentError unless one of `hosts`, monitors that a VM's definition names, is one of our configuration's.

    Else an image of the same name in another cluster would be taken for the VM's.
    """
    with _pool(pool, image) as (_, cluster, _opened):
        ours = cluster.conf_get("mon_host") or ""
    named = set(re.split(r"[\s,/:\[\]]+", ours))
    if not any(host in named or (":" in host and host in ours) for host in hosts):
        raise PermanentError(
            f"rbd:{pool}/{image}: the VM's image lies in the cluster of {', '.join(hosts)}, the configuration is that "
            f"of {ours or 'no monitor'}",
            hint="set $CEPH_CONF to the VM's cluster; if it is the same one, give --onto. Nothing was written",
        )


@contextmanager
def _pool(pool: str, image: str) -> Iterator[tuple[Any, Any, Any]]:
    """The binding, the cluster, and the pool; PermanentError for whatever goes wrong in the block."""
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
            yield rbd, cluster, opened
    except (rados.Error, rbd.Error) as error:
        raise PermanentError(
            f"rbd:{pool}/{image}: {error}", hint=f"check `rbd info {pool}/{image}` with the same $CEPH_CONF"
        ) from error
