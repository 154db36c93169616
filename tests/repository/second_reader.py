"""A second reader of format version 1, written from docs/repository-format.md alone: nothing of vmcellar is imported.

Sections named below are those of that page. It reads passphrase mode only and checks as little as it can: its
use is to show that the page says everything that a reader needs.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ABSENT = bytes(32)
LEAF = 32 << 20


def derive(secret: bytes, context: bytes, salt: bytes = b"") -> bytes:
    """Section 3."""
    return HKDF(SHA256(), 32, salt or None, b"vmcellar 1 " + context).derive(secret)


class SecondReader:
    """One repository in a folder."""

    def __init__(self, folder: Path, passphrase: bytes) -> None:
        self.folder = folder
        config = json.loads((folder / "config").read_bytes())
        self.id = bytes.fromhex(config["id"])
        secrets = self._secrets(passphrase)
        self.ids, self.meta, self.signing = secrets[:32], secrets[32:64], secrets[64:96]
        self.masters = [secrets[i : i + 32] for i in range(96, len(secrets), 32)]
        assert self.open_meta(b"config", self.id, bytes.fromhex(config["seal"])) == b""  # section 10
        self.index = dict(self._index())

    def _secrets(self, passphrase: bytes) -> bytes:
        """Section 4, from the only slot."""
        (path,) = (self.folder / "keys").iterdir()
        slot = json.loads(path.read_bytes())
        kdf = Argon2id(
            salt=b64decode(slot["salt"]),
            length=32,
            iterations=slot["passes"],
            lanes=slot["lanes"],
            memory_cost=slot["memory_kib"],
        )
        sealed = b64decode(slot["sealed"])
        body = {
            "format": 1,
            "kind": slot["kind"],
            "slot": path.name,
            "label": slot["label"],
            "created": slot["created"],
        }
        bound = document({**body, "check": checksum(body)})
        return AESGCM(kdf.derive(passphrase)).decrypt(sealed[:12], sealed[12:], bound)

    def open_meta(self, kind: bytes, name: bytes, sealed: bytes) -> bytes:
        """Section 3."""
        return AESGCM(derive(self.meta, b"meta " + kind, name)).decrypt(sealed[:12], sealed[12:], kind)

    def _index(self) -> Iterator[tuple[bytes, tuple[bytes, int, bytes, int, int, int, int, int]]]:
        """Section 8: id -> (pack id, pack kind, epoch, ordinal, offset, stored, length, method)."""
        for path in (self.folder / "index").iterdir():
            data = path.read_bytes()
            assert data[:16] == struct.pack("<8sH6x", b"vmcindx\n", 1)
            plain = self.open_meta(b"index", bytes.fromhex(path.name), data[16:])
            _, packs, rows = struct.unpack_from("<BxxxII4x", plain)
            table = [struct.unpack_from("<16s16sQB7x", plain, 16 + 48 * i) for i in range(packs)]
            for i in range(rows):
                row = struct.unpack_from("<II32sIIIBBH", plain, 16 + 48 * packs + 56 * i)
                pack, ordinal, chunk, offset, stored, length, method, _, _ = row
                yield chunk, (table[pack][0], table[pack][3], table[pack][1], ordinal, offset, stored, length, method)

    def _epoch_key(self, epoch: bytes) -> bytes:
        """Section 4."""
        (path,) = (self.folder / "epochs").glob(f"{epoch.hex()}-*")
        name = f"epochs/{path.name}".encode()
        data = path.read_bytes()
        wrapped = self.open_meta(b"epoch", name, data[16:])
        for master in self.masters:
            if derive(master, b"holder")[:8].hex() == path.name.partition("-")[2]:
                key = derive(derive(master, b"wrap"), b"meta epoch key", name)
                return AESGCM(key).decrypt(wrapped[:12], wrapped[12:], b"epoch key")
        raise AssertionError("no master opens the epoch")

    def read_object(self, wanted: bytes, what: bytes) -> bytes:
        """Sections 5 and 3: one object, checked against its id; `what` is `chunk id` or `node id`."""
        pack, kind, epoch, ordinal, offset, stored, length, method = self.index[wanted]
        folder = self.folder / ("data" if kind == 1 else "meta")
        sealed = (folder / pack.hex()[:2] / pack.hex()).read_bytes()[offset : offset + stored]
        if kind == 1:
            key = derive(self._epoch_key(epoch), b"pack", pack)
            plain = AESGCM(key).decrypt(struct.pack("<IQ", ordinal, 0), sealed, b"vmcellar data pack 1" + pack)
        else:
            plain = self.open_meta(b"object", pack + struct.pack("<I", ordinal), sealed)
        if method == 1:
            plain = zstandard.ZstdDecompressor().decompress(plain)
        assert len(plain) == length
        assert blake3(plain, key=derive(self.ids, what)).digest() == wanted
        return plain

    def toc(self, pack: Path) -> list[tuple[bytes, int, int, int, int, int, int]]:
        """Section 5: the rows of a pack's own table of contents."""
        data = pack.read_bytes()
        _, offset, length, rows, pack_id = struct.unpack_from("<8sQII16s8x", data, len(data) - 64)
        assert blake3(data[-64:-16]).digest(16) == data[-16:]
        plain = self.open_meta(b"toc", pack_id, data[offset : offset + length])
        assert plain[:64] == data[:64]
        return [struct.unpack_from("<32sIIIBBH", plain, 64 + 48 * i) for i in range(rows)]

    def point(self, point_id: str) -> dict[str, object]:
        """Section 9."""
        data = (self.folder / "points" / point_id).read_bytes()
        plain = self.open_meta(b"point", point_id.encode(), data[16:])
        (length,) = struct.unpack_from("<H", plain)
        signature, text = plain[2 : 2 + length], plain[2 + length :]
        signed = b"vmcellar restore point, version 1\n" + self.id + point_id.encode() + b"\n" + text
        key = Ed25519PrivateKey.from_private_bytes(derive(self.signing, b"signing")).public_key()
        key.verify(signature, signed)
        found: dict[str, object] = json.loads(text)
        return found

    def disk(self, size: int, root: bytes, level: int) -> bytes:
        """Sections 6 and 7: the whole disk."""
        image = bytearray(size)
        for offset, length, start, chunk in self._rows(root, level, 0):
            image[offset : offset + length] = self.read_object(chunk, b"chunk id")[start : start + length]
        return bytes(image)

    def _rows(self, node: bytes, level: int, base: int) -> Iterator[tuple[int, int, int, bytes]]:
        if node == ABSENT:
            return
        data = self.read_object(node, b"node id")
        _, _, _, count = struct.unpack_from("<BBHI", data)
        if level == 0:
            columns = [struct.unpack_from(f"<{count}I", data, 8 + 4 * count * i) for i in range(3)]
            ids = 8 + 12 * count
            for i in range(count):
                chunk = data[ids + 32 * i : ids + 32 * i + 32]
                yield base + columns[0][i], columns[1][i], columns[2][i], chunk
            return
        span = LEAF * 256 ** (level - 1)
        for i in range(count):
            start = 8 + count + 32 * i
            yield from self._rows(data[start : start + 32], level - 1, base + data[8 + i] * span)


def document(fields: dict[str, object]) -> bytes:
    """Section 4: how key documents are written."""
    return json.dumps(fields, indent=1).encode() + b"\n"


def checksum(body: dict[str, object]) -> str:
    """Section 4: the `check` of a key document."""
    return sha256(document(body)).hexdigest()[:32]
