"""What an open repository can do with its keys, and the small store where sealed keys are kept.

Repository, backup and restore code against these Protocols. Source: DESIGN.md, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from vmcellar.errors import PermanentError

Buffer = bytes | bytearray | memoryview


class EpochLockedError(PermanentError):
    """The keys at hand do not open this epoch: its packs are whole, but only a recipient's private key reads them."""


class PackCipher(Protocol):
    """The cipher of one pack. Any thread."""

    def seal(self, ordinal: int, plain: Buffer) -> bytes:
        """The sealed form, SEAL_OVERHEAD bytes longer. ValueError when the ordinal was sealed before."""
        ...

    def seal_into(self, ordinal: int, plain: Buffer, out: memoryview) -> None:
        """As `seal`, into `out` of exactly that length: memory that is used again costs a tenth of fresh memory."""
        ...

    def open(self, ordinal: int, sealed: Buffer) -> bytes:
        """The plain form; IntegrityError when a bit of it, or its place in the pack, differs."""
        ...

    def open_into(self, ordinal: int, sealed: Buffer, out: memoryview) -> None:
        """As `open`, into `out` of exactly that length. After an error `out` holds nothing to rely on."""
        ...


class Keyring(Protocol):
    """The open keys of one repository. Any thread. Its repr shows no secret."""

    @property
    def epoch_id(self) -> bytes:
        """The epoch under which new data packs are sealed, 16 bytes.

        The first use makes it: its key is durable for every holder before this returns. Raises what the tier raises.
        """
        ...

    def chunk_id(self, data: Buffer) -> bytes:
        """The keyed digest that names a chunk, 32 bytes. One call for any size; frees the GIL."""
        ...

    def node_id(self, data: Buffer) -> bytes:
        """The keyed digest that names a node of a disk map, 32 bytes; never equal to a chunk's."""
        ...

    def seal_meta(self, kind: bytes, name: bytes, plain: Buffer) -> bytes:
        """Seal a metadata object under its kind and name."""
        ...

    def open_meta(self, kind: bytes, name: bytes, sealed: Buffer) -> bytes:
        """The plain form; IntegrityError when it is not what was sealed under that kind and name."""
        ...

    def pack_cipher(self, epoch: bytes, pack: bytes) -> PackCipher:
        """The cipher of a data pack; EpochLockedError when this keyring cannot open that epoch."""
        ...

    def sign(self, data: Buffer) -> bytes:
        """An Ed25519 signature, 64 bytes."""
        ...

    def check(self, data: Buffer, signature: bytes) -> None:
        """IntegrityError unless `signature` is this repository's for `data`."""
        ...


class SmallObjects(Protocol):
    """Named small objects that are never overwritten: a tier offers this."""

    def get(self, key: str) -> bytes:
        """The whole object."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Make `data` durable under a new key."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object whose key begins with `prefix`; complete or an error."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object, durably."""
        ...
