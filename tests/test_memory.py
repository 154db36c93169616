"""Pooled buffers belong to one process."""

from __future__ import annotations

import os

from vmcellar.memory import PAGE, BufferPool


def test_a_forked_process_has_buffers_of_its_own() -> None:
    """Else what one process decrypts lands in what another is about to write out."""
    pool = BufferPool(PAGE)
    buffer = pool.acquire()
    buffer[:4] = b"mine"
    pid = os.fork()
    if pid == 0:
        buffer[:4] = b"his!"
        os._exit(0)
    os.waitpid(pid, 0)
    assert bytes(buffer[:4]) == b"mine"
