"""The packs of a segment, some at a time: while one waits for its device or server, others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vmcellar.backup.model import PackHandle
from vmcellar.errors import CancelledError
from vmcellar.progress import CancelToken

T = TypeVar("T")


def each_pack(
    packs: Sequence[PackHandle], at_once: int, work: Callable[[PackHandle, CancelToken], T], cancel: CancelToken
) -> list[T]:
    """What `work` returns for each pack, in their order; at most `at_once` threads call it.

    An error stops the others: those that have not begun never do, and the token that each was given is set. When all
    have ended, the error of the first pack that has one of its own is raised, CancelledError when there is none.
    """
    stop = CancelToken(cancel)

    def one(pack: PackHandle) -> T:
        try:
            stop.check()
            return work(pack, stop)
        except BaseException:
            stop.cancel()
            raise

    if not packs:
        return []
    with ThreadPoolExecutor(min(at_once, len(packs)), thread_name_prefix="packs") as pool:
        futures = [pool.submit(one, pack) for pack in packs]
        errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, CancelledError)), errors[0])
    return [future.result() for future in futures]
