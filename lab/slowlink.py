"""A TCP proxy that adds latency and nothing else: `python -m lab.slowlink PORT MILLISECONDS` prints its own port.

Each piece is passed on so long after it came, whatever came before it: bandwidth stays. Half of the time is added each
way. A process of its own, so that who measures does not share an interpreter with it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE = 1 << 18
_PIECES_HELD = 256
"""At 64 MiB on its way a connection is no longer read; what a link of 20 ms holds is far less."""


@contextmanager
def slow_link(port: int, milliseconds: float) -> Iterator[str]:
    """An HTTP endpoint that leads to `port` of loopback with this much added to each round trip."""
    command = [sys.executable, "-m", "lab.slowlink", str(port), str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def _serve(port: int, delay: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            await asyncio.gather(_pass_on(reader, there_writer, delay), _pass_on(there_reader, writer, delay))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=_PIECE)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    loop = asyncio.get_running_loop()
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_HELD)

    async def read() -> None:
        data = b"begin"
        while data:
            data = await reader.read(_PIECE)
            await held.put((loop.time() + delay, data))

    reading = asyncio.create_task(read())
    try:
        while True:
            due, data = await held.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
    finally:
        reading.cancel()
        writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 2000))
