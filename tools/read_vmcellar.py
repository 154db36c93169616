#!/usr/bin/env python3
"""Restore from a vmcellar repository without vmcellar: one file, Python 3.11, `zstandard`, `cryptography` 50 or newer.

    read_vmcellar.py FOLDER KEY list
    read_vmcellar.py FOLDER KEY disk POINT TARGET FILE [--best-effort]
    read_vmcellar.py FOLDER KEY artifacts POINT DIRECTORY
    read_vmcellar.py FOLDER KEY open OBJECT[:ORDINAL]

KEY is --passphrase-file FILE, or --identity FILE with --identity-passphrase-file FILE (a recipient's private key), or
--paper FILE (the typed lines of a paper key). --also FOLDER names another copy of the repository, for what is damaged
or missing in the first. Nothing in the folders is ever written. `open` writes what an object holds, checked and without
its seal, to standard output: of a pack its table of contents, with an ordinal that object of it.

Sections named below are those of docs/repository-format.md. Everything read is checked by AES-GCM; with the `blake3`
module installed also against its id. What is damaged in one place is looked for in every other before it counts as
lost: in other packs, in other folders, in a pack's own table of contents when the index does not help.
Exit codes: 0 all restored, 1 something is missing or wrong, 2 bad use.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import sys
from base64 import b32decode, b32encode, b64decode
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

try:
    from blake3 import blake3
except ImportError:
    blake3 = None  # type: ignore[assignment, misc]

ABSENT = bytes(32)
LEAF_BYTES = 32 << 20
CHUNK_MAX = 1 << 20
ARGON2_MOST = {"memory_kib": 4 << 20, "passes": 64, "lanes": 64}
TOC_ROW = struct.Struct("<32sIIIBBH")
DATA_PACK = 1
RECORDS = {  # magic and kind of seal of what lies in each folder, sections 8, 9, 12 and 13
    "index": (b"vmcindx\n", b"index"),
    "points": (b"vmcpoin\n", b"point"),
    "evidence": (b"vmcevid\n", b"evidence"),
    "leases": (b"vmcleas\n", b"lease"),
    "gc": (b"vmcmark\n", b"gc mark"),
    "drops": (b"vmcdrop\n", b"drop"),
    "pins": (b"vmcpins\n", b"pin"),
}
SIGNED = {"points": b"vmcellar restore point, version 1\n", "evidence": b"vmcellar evidence, version 1\n"}


class Damage(Exception):  # noqa: N818  (what it says is what is wrong, not that an error happened)
    """Bytes that are not what they must be, or are not there; the text names them."""


MALFORMED = (Damage, OSError, ValueError, LookupError, TypeError, struct.error, RecursionError)
"""What reading bytes that somebody made up may come to; the last ones only if he has the keys."""


def derive(secret: bytes, context: bytes, salt: bytes = b"") -> bytes:
    """Section 3."""
    return HKDF(SHA256(), 32, salt or None, b"vmcellar 1 " + context).derive(secret)


def open_sealed(secret: bytes, kind: bytes, name: bytes, sealed: bytes) -> bytes:
    """Sealed metadata, section 3."""
    try:
        return AESGCM(derive(secret, b"meta " + kind, name)).decrypt(sealed[:12], sealed[12:], kind)
    except (InvalidTag, ValueError) as error:
        raise Damage("it does not decrypt: damaged, or of another place or repository") from error


# Keys, section 4


class Keys(NamedTuple):
    """The repository's secrets, and what opens epoch keys by the id of the holder."""

    ids: bytes
    meta: bytes
    signing: bytes
    openers: dict[str, Callable[[bytes, bytes], bytes]]
    secrets: bytes
    slot: str = ""


def keys_of(secrets: bytes, slot: str = "") -> Keys:
    ids, meta, signing, *masters = (secrets[i : i + 32] for i in range(0, len(secrets), 32))
    openers = {derive(key, b"holder")[:8].hex(): master_opener(key) for key in masters}
    return Keys(ids, meta, signing, openers, secrets, slot)


def master_opener(master: bytes) -> Callable[[bytes, bytes], bytes]:
    return lambda name, wrapped: open_sealed(derive(master, b"wrap"), b"epoch key", name, wrapped)


def document(fields: dict[str, Any]) -> bytes:
    """How key documents are written, with their checksum."""
    body = json.dumps(fields, indent=1).encode() + b"\n"
    return json.dumps({**fields, "check": sha256(body).hexdigest()[:32]}, indent=1).encode() + b"\n"


def reveal(fields: dict[str, Any], passphrase: bytes, bound: bytes) -> bytes | None:
    """What a document protects by a passphrase; None when it does not open."""
    if any(not 1 <= fields[name] <= most for name, most in ARGON2_MOST.items()):
        return None
    salt, sealed = b64decode(fields["salt"]), b64decode(fields["sealed"])
    kdf = Argon2id(
        salt=salt, length=32, iterations=fields["passes"], lanes=fields["lanes"], memory_cost=fields["memory_kib"]
    )
    try:
        return AESGCM(kdf.derive(passphrase)).decrypt(sealed[:12], sealed[12:], bound)
    except InvalidTag:
        return None


def keys_by_passphrase(folders: list[Path], passphrase: bytes) -> Keys:
    for path in every_file(folders, "keys"):
        try:
            slot = json.loads(path.read_bytes())
            if slot["kind"] in ("passphrase", "host"):
                shown = {"slot": path.name, "label": slot["label"], "created": slot["created"]}
                found = reveal(slot, passphrase, document({"format": 1, "kind": slot["kind"], **shown}))
                if found is not None:
                    return keys_of(found, path.name)
        except (ValueError, KeyError, TypeError, OSError) as error:
            warn(f"{path} cannot be used: {error!r}")
    raise Damage("no key slot opens with this passphrase")


def keys_by_identity(folders: list[Path], path: Path, passphrase: bytes) -> Keys:
    fields = json.loads(path.read_bytes())
    key_id = str(fields["id"])
    raw = reveal(fields, passphrase, f"vmcellar private key 1 {key_id}".encode())
    if raw is None:
        raise Damage(f"{path} does not open with this passphrase")
    return keys_of_recipient(folders, key_id, raw)


def keys_of_recipient(folders: list[Path], key_id: str, raw: bytes) -> Keys:
    opens = recipient_opener(raw)
    for slot in copies(folders, f"keys/{key_id}"):
        try:
            sealed = b64decode(json.loads(slot.read_bytes())["secrets"])
            keys = keys_of(opens(b"vmcellar secrets 1 keys/" + key_id.encode(), sealed), key_id)
        except (ValueError, KeyError, TypeError, OSError, Damage) as error:
            warn(f"{slot} cannot be used: {error}")
            continue
        keys.openers[key_id] = lambda name, wrapped: opens(b"vmcellar epoch 1 " + name, wrapped)
        return keys
    raise Damage(f"no slot keys/{key_id} of this recipient opens")


def recipient_opener(raw: bytes) -> Callable[[bytes, bytes], bytes]:
    """Opens with a private key what was sealed under a context."""
    from cryptography.hazmat.primitives import hpke  # noqa: PLC0415  (older versions do for passphrases)
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(raw[:64])
    private = hpke.MLKEM768X25519PrivateKey(mlkem, X25519PrivateKey.from_private_bytes(raw[64:]))

    def opens(context: bytes, sealed: bytes) -> bytes:
        try:
            return suite.decrypt(sealed, private, info=context)
        except (InvalidTag, ValueError) as error:
            raise Damage("it does not open with this private key") from error

    return opens


def keys_by_paper(folders: list[Path], text: str) -> Keys:
    """From numbered lines of base32; the last group of each is its own checksum, the last 8 bytes that of all."""
    body = b""
    for number, line in re.findall(r"^\s*(\d{1,3})[.:]?\s+([A-Za-z0-9\s]+?)\s*$", text, re.MULTILINE):
        letters = re.sub(r"\s", "", line).upper().translate(str.maketrans("018", "OIB"))
        piece = b32decode(letters[:-4] + "=" * (-(len(letters) - 4) % 8))
        check = b32encode(sha256(b"vmcellar paper 1 %d " % int(number) + piece).digest())[:4].decode()
        if check != letters[-4:]:
            raise Damage(f"line {number} of the paper key is mistyped")
        body += piece
    if sha256(body[:-8]).digest()[:8] != body[-8:]:
        raise Damage("the paper key is not whole: a line is missing or out of order")
    kind, data = body[:1], body[1:-8]
    return keys_of(data) if kind == b"S" else keys_of_recipient(folders, recipient_id(data), data)


def recipient_id(raw: bytes) -> str:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415

    public = MLKEM768PrivateKey.from_seed_bytes(raw[:64]).public_key().public_bytes_raw()
    public += X25519PrivateKey.from_private_bytes(raw[64:]).public_key().public_bytes_raw()
    return sha256(b"vmcellar recipient 1 " + public).hexdigest()[:16]


# Files


def copies(folders: list[Path], name: str) -> list[Path]:
    """Where an object lies, in every folder that has it."""
    return [folder / name for folder in folders if (folder / name).is_file()]


def every_file(folders: list[Path], below: str) -> list[Path]:
    return [path for folder in folders for path in sorted((folder / below).rglob("*")) if path.is_file()]


def read_part(path: Path, offset: int, length: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise Damage(f"{path}: {error.strerror}") from error
    if len(data) != length:
        raise Damage(f"{path} ends before byte {offset + length}")
    return data


def warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Objects, sections 5 and 8


class Place(NamedTuple):
    """Where a copy of an object lies."""

    pack: bytes
    kind: int
    epoch: bytes
    ordinal: int
    offset: int
    stored: int
    length: int
    method: int

    @property
    def name(self) -> str:
        return f"{'data' if self.kind == DATA_PACK else 'meta'}/{self.pack.hex()[:2]}/{self.pack.hex()}"


class Repository:
    """Folders that hold copies of one repository, with its keys."""

    def __init__(self, folders: list[Path], keys: Keys) -> None:
        self.folders = folders
        self.keys = keys
        self.ids = {what: derive(keys.ids, what) for what in (b"chunk id", b"node id")}
        self.epochs: dict[bytes, bytes] = {}
        self.places: dict[bytes, list[Place]] = {}
        self.unreadable: set[str] = set()
        self.scanned = False
        for path in every_file(folders, "index"):
            try:
                self._add_part(path)
            except MALFORMED as error:
                warn(f"{path}: {error}; its objects will be looked for in the packs themselves")

    def record(self, folder: str, path: Path) -> bytes:
        """What a sealed record of one of these folders holds; of what is signed, the signature is checked."""
        magic, kind = RECORDS[folder]
        data = path.read_bytes()
        if data[:16] != struct.pack("<8sH6x", magic, 1):
            raise Damage("its header is not of version 1")
        name = path.name.encode()
        if folder == "index":
            name = bytes.fromhex(path.name)
        elif folder not in SIGNED:
            name = f"{folder}/{path.name}".encode()
        plain = open_sealed(self.keys.meta, kind, name, data[16:])
        if folder in SIGNED:
            self._check_signature(SIGNED[folder], name, plain)
        return plain

    def _check_signature(self, begin: bytes, name: bytes, plain: bytes) -> None:
        (length,) = struct.unpack_from("<H", plain)
        text = plain[2 + length :]
        signed = begin + bytes.fromhex(json.loads(text)["repository"]) + name + b"\n" + text
        try:
            key = Ed25519PrivateKey.from_private_bytes(derive(self.keys.signing, b"signing"))
            key.public_key().verify(plain[2 : 2 + length], signed)
        except InvalidSignature as error:
            raise Damage("the signature is not this repository's") from error

    def _add_part(self, path: Path) -> None:
        """Section 8. Notes of damage name copies that the entries have too, so both are taken alike."""
        plain = self.record("index", path)
        packs, rows = struct.unpack_from("<4xII", plain)
        table = [struct.unpack_from("<16s16sQB", plain, 16 + 48 * i) for i in range(packs)]
        for start in range(16 + 48 * packs, 16 + 48 * packs + 56 * rows, 56):
            number, ordinal = struct.unpack_from("<II", plain, start)
            pack, epoch, _, kind = table[number]
            self._add(plain[start + 8 : start + 56], pack, kind, epoch, ordinal)

    def _add(self, row: bytes, pack: bytes, kind: int, epoch: bytes, ordinal: int) -> None:
        wanted, offset, stored, length, method, _, _ = TOC_ROW.unpack(row)
        place = Place(pack, kind, epoch, ordinal, offset, stored, length, method)
        known = self.places.setdefault(wanted, [])
        if place not in known:
            known.append(place)

    def scan(self) -> bool:
        """Read the tables of contents of all packs, once; whether that was new."""
        if self.scanned:
            return False
        self.scanned = True
        packs = every_file(self.folders, "meta") + every_file(self.folders, "data")
        warn(f"reading the tables of contents of {len(packs)} packs")
        for path in packs:
            try:
                self._add_pack(path)
            except MALFORMED as error:
                warn(f"{path}: its table of contents cannot be read: {error}")
        return True

    def table(self, path: Path) -> bytes:
        """Section 5. The sealed table begins with a copy of the header, so a damaged header does not matter."""
        tail = read_part(path, max(0, path.stat().st_size - 64), 64)
        magic, offset, length, _, _ = struct.unpack_from("<8sQII16s", tail)
        if magic != b"vmctail\n" or offset + length > path.stat().st_size:
            raise Damage("the trailer is not a pack's")
        return open_sealed(self.keys.meta, b"toc", bytes.fromhex(path.name), read_part(path, offset, length))

    def _add_pack(self, path: Path) -> None:
        plain = self.table(path)
        kind, epoch = plain[10], plain[32:48]
        for ordinal, start in enumerate(range(64, len(plain), TOC_ROW.size)):
            self._add(plain[start : start + TOC_ROW.size], bytes.fromhex(path.name), kind, epoch, ordinal)

    def locate(self, wanted: bytes) -> bool:
        """Whether a place of the object is known, if need be from the packs' own tables."""
        return wanted in self.places or (self.scan() and wanted in self.places)

    def read(self, wanted: bytes, what: bytes) -> bytes:
        """An object's bytes from the first copy that is whole; `what` is `chunk id` or `node id`."""
        reasons: dict[str, None] = {}
        while True:
            for place in self.places.get(wanted, []):
                for path in copies(self.folders, place.name) or [Path(place.name)]:
                    try:
                        return self.read_at(path, place, wanted, what)
                    except Damage as error:
                        reasons[f"{path}, object {place.ordinal}: {error}"] = None
            if not self.scan():
                break
        raise Damage("; ".join(reasons) or f"no pack has object {wanted.hex()}")

    def read_at(self, path: Path, place: Place, wanted: bytes, what: bytes) -> bytes:
        """An object's bytes from one copy."""
        if place.stored > 2 * CHUNK_MAX or place.length > CHUNK_MAX:
            raise Damage("no object is that long")
        sealed = read_part(path, place.offset, place.stored)
        if place.kind == DATA_PACK:
            plain = self._open_data(place, sealed)
        else:
            plain = open_sealed(self.keys.meta, b"object", place.pack + struct.pack("<I", place.ordinal), sealed)
        if place.method == 1:
            try:
                plain = zstandard.ZstdDecompressor().decompress(plain, max_output_size=CHUNK_MAX)
            except zstandard.ZstdError as error:
                raise Damage(f"no whole zstd frame: {error}") from error
        if len(plain) != place.length:
            raise Damage("it has another length")
        if blake3 is not None and blake3(plain, key=self.ids[what]).digest() != wanted:
            raise Damage("its content is not what its id says")
        return plain

    def _open_data(self, place: Place, sealed: bytes) -> bytes:
        if place.epoch not in self.epochs:
            self.epochs[place.epoch] = self._epoch_key(place.epoch)
        aead = AESGCM(derive(self.epochs[place.epoch], b"pack", place.pack))
        try:
            return aead.decrypt(place.ordinal.to_bytes(12, "little"), sealed, b"vmcellar data pack 1" + place.pack)
        except (InvalidTag, ValueError) as error:
            raise Damage("it does not decrypt") from error

    def _epoch_key(self, epoch: bytes) -> bytes:
        """Section 4: from the first object that one of our keys opens."""
        reasons = []
        for holder in self.keys.openers:
            for path in copies(self.folders, f"epochs/{epoch.hex()}-{holder}"):
                try:
                    return self.epoch_key_of(path)
                except (Damage, OSError) as error:
                    reasons.append(f"{path}: {error}")
        raise Damage("; ".join(reasons) or f"no key at hand opens epoch {epoch.hex()}")

    def epoch_key_of(self, path: Path) -> bytes:
        """Section 4, from one object."""
        name, holder = f"epochs/{path.name}".encode(), path.name.partition("-")[2]
        if holder not in self.keys.openers:
            raise Damage("it is sealed to another holder")
        wrapped = open_sealed(self.keys.meta, b"epoch", name, path.read_bytes()[16:])
        return self.keys.openers[holder](name, wrapped)

    # Points, section 9

    def points(self) -> Iterator[dict[str, Any]]:
        """All points that are whole, by id; the others are named, and in `unreadable` at the end."""
        seen: set[str] = set()
        self.unreadable = set()
        for path in sorted(every_file(self.folders, "points"), key=lambda path: path.name):
            if path.name not in seen:
                try:
                    yield self._point(path)
                    seen.add(path.name)
                except MALFORMED as error:
                    warn(f"point {path}: {error}")
                    self.unreadable.add(path.name)
        self.unreadable -= seen

    def _point(self, path: Path) -> dict[str, Any]:
        plain = self.record("points", path)
        point: dict[str, Any] = json.loads(plain[2 + struct.unpack_from("<H", plain)[0] :])
        if point["id"] != path.name:
            raise Damage("it is the record of another point")
        return point

    def point(self, name: str) -> dict[str, Any]:
        """The point whose id begins with `name`, or VM@latest."""
        vm, at, _ = name.rpartition("@latest")
        found = [p for p in self.points() if (p["vm"] == vm if at else p["id"].startswith(name))]
        if at and found:
            latest = max(found, key=lambda point: (point["time"], point["id"]))
            newer = sorted(name for name in self.unreadable if name > latest["id"])  # ids begin with the time
            if newer:
                raise Damage(f"{newer[-1]} cannot be read and may be {name}: give the id of the point that you want")
            return latest
        if len(found) != 1:
            raise Damage(f"{len(found)} points are named {name}")
        return found[0]

    # Maps, section 6

    def rows(self, node: bytes, level: int, base: int, losses: Losses) -> Iterator[Row]:
        """All extents below a node that covers the disk from `base`."""
        if node == ABSENT:
            return
        span = LEAF_BYTES * 256**level
        try:
            data = self.read(node, b"node id")
            kind, found_level, _, count = struct.unpack_from("<BBHI", data)
            if (kind, found_level) != (1 if level == 0 else 2, level):
                raise Damage(f"node {node.hex()} is not of level {level}")
            if not count or len(data) != 8 + count * (44 if level == 0 else 33):
                raise Damage(f"node {node.hex()} is not as long as it says")
        except (Damage, struct.error) as error:
            losses.add(base, span, str(error))
            return
        if level == 0:
            yield from leaf_rows(data, count, base)
            return
        for i in range(count):
            at = 8 + count + 32 * i
            yield from self.rows(data[at : at + 32], level - 1, base + data[8 + i] * (span // 256), losses)


class Row(NamedTuple):
    """`length` bytes of the disk at `offset` are those of `chunk` from `start`."""

    offset: int
    length: int
    start: int
    chunk: bytes


def leaf_rows(data: bytes, count: int, base: int) -> Iterator[Row]:
    columns = struct.iter_unpack(f"<{count}I", data[8 : 8 + 12 * count])
    for i, (offset, length, start) in enumerate(zip(*columns, strict=True)):
        at = 8 + 12 * count + 32 * i
        yield Row(base + offset, length, start, data[at : at + 32])


class Losses:
    """What of a disk no copy has. Without best effort the first one ends the restore."""

    def __init__(self, disk: dict[str, Any], best_effort: bool) -> None:
        self.disk = disk
        self.best_effort = best_effort
        self.count = 0

    def add(self, offset: int, length: int, reason: str) -> None:
        length = min(length, self.disk["size"] - offset)
        text = f"disk {self.disk['target']}, {length} bytes at {offset}: {reason}"
        if not self.best_effort:
            raise Damage(f"{text}\nnothing was kept; --best-effort restores the rest and lists all that is lost")
        warn(f"lost: {text}")
        self.count += 1


# Commands


def list_points(repository: Repository) -> int:
    for point in repository.points():
        disks = ", ".join(f"{disk['target']} {disk['size']}" for disk in point["disks"])
        print(f"{point['id']}  {point['vm']}  {point['kind']}, {point['consistency']}  disks: {disks}")
    return 0


def restore_disk(repository: Repository, name: str, target: str, output: Path, best_effort: bool) -> int:
    """Write a raw image, sparse, under its name only when it is done. All chunks are located before the first byte."""
    point = repository.point(name)
    disk = next((disk for disk in point["disks"] if disk["target"] == target), None)
    if disk is None:
        raise Damage(f"point {point['id']} has no disk {target}")
    if output.exists():
        raise Damage(f"{output} exists: name another file")
    losses = Losses(disk, best_effort)
    rows = list(located(repository, repository.rows(bytes.fromhex(disk["root"]), disk["level"], 0, losses), losses))
    part = output.with_name(output.name + ".part")
    try:
        with open(part, "xb", opener=private) as file:
            file.truncate(disk["size"])
            write_rows(repository, file, rows, losses)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise Damage(f"{part} exists: another run writes it, or was killed; remove it if it was") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.rename(output)
    print(f"{output}: {disk['size']} bytes, disk {target} of {point['vm']} at {point['id']}")
    if losses.count:
        warn(f"{losses.count} ranges are lost, see above: they hold zeroes now")
    return 1 if losses.count else 0


def private(path: str, flags: int) -> int:
    """Disks and definitions of VMs are nobody else's to read."""
    return os.open(path, flags, 0o600)


def located(repository: Repository, rows: Iterator[Row], losses: Losses) -> Iterator[Row]:
    for row in rows:
        if repository.locate(row.chunk):
            yield row
        else:
            losses.add(row.offset, row.length, f"no pack has chunk {row.chunk.hex()}")


def write_rows(repository: Repository, file: BinaryIO, rows: list[Row], losses: Losses) -> None:
    """In the order in which the chunks lie in the packs; each chunk is read once."""
    rows.sort(key=lambda row: (*lies_at(repository.places[row.chunk][0]), row.chunk, row.offset))
    chunk, data, reason = b"", b"", ""
    for row in rows:
        if row.chunk != chunk:
            chunk, data, reason = row.chunk, b"", ""
            try:
                data = repository.read(chunk, b"chunk id")
            except Damage as error:
                reason = str(error)
        piece = data[row.start : row.start + row.length]
        if len(piece) == row.length:
            file.seek(row.offset)
            file.write(piece)
        else:
            losses.add(row.offset, row.length, reason or f"chunk {chunk.hex()} is too short")


def lies_at(place: Place) -> tuple[bytes, int]:
    return place.pack, place.offset


def restore_artifacts(repository: Repository, name: str, directory: Path) -> int:
    point = repository.point(name)
    directory.mkdir(parents=True, exist_ok=True)
    for artifact in point["artifacts"]:
        data = b"".join(repository.read(bytes.fromhex(chunk), b"chunk id") for chunk in artifact["chunks"])
        if len(data) != artifact["size"]:
            raise Damage(f"artifact {artifact['name']} has {len(data)} bytes instead of {artifact['size']}")
        path = directory / Path(artifact["name"]).name
        with open(path, "xb", opener=private) as file:
            file.write(data)
        print(path)
    return 0


# What an object holds, all sections


def open_object(repository: Repository, name: str) -> int:
    """The bytes without their seal; for people with the page on the format in front of them, and for its tests."""
    key, _, ordinal = name.partition(":")
    reasons = []
    for path in copies(repository.folders, key):
        try:
            plain = opened(repository, key, path, ordinal)
        except MALFORMED as error:
            reasons.append(f"{path}: {error}")
            continue
        sys.stdout.buffer.write(plain)
        return 0
    raise Damage("; ".join(reasons) or f"there is no object {key}")


def opened(repository: Repository, key: str, path: Path, ordinal: str) -> bytes:
    folder, keys = key.partition("/")[0], repository.keys
    if folder == "config":
        config = json.loads(path.read_bytes())
        return open_sealed(keys.meta, b"config", bytes.fromhex(config["id"]), bytes.fromhex(config["seal"]))
    if folder == "keys":
        return opened_slot(keys, path)
    if folder == "epochs":
        return repository.epoch_key_of(path)
    if folder in ("data", "meta"):
        return opened_pack(repository, path, ordinal)
    if folder in RECORDS:
        return repository.record(folder, path)
    raise Damage("it has no seal to open")


def opened_slot(keys: Keys, path: Path) -> bytes:
    fields = json.loads(path.read_bytes())
    if document({name: value for name, value in fields.items() if name != "check"}) != path.read_bytes():
        raise Damage("its checksum differs, or it is not in its one form")
    if path.name != keys.slot:
        raise Damage(f"the key given opens keys/{keys.slot}, not this one")
    return keys.secrets


def opened_pack(repository: Repository, path: Path, ordinal: str) -> bytes:
    table = repository.table(path)
    if not ordinal:
        return table
    start = 64 + TOC_ROW.size * int(ordinal)
    if start >= len(table):
        raise Damage(f"it has {(len(table) - 64) // TOC_ROW.size} objects, counted from 0")
    wanted, offset, stored, length, method, what, _ = TOC_ROW.unpack(table[start : start + TOC_ROW.size])
    place = Place(bytes.fromhex(path.name), table[10], table[32:48], int(ordinal), offset, stored, length, method)
    return repository.read_at(path, place, wanted, b"node id" if what else b"chunk id")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("folder", type=Path, help="the folder that holds `config`, `points`, `meta` and `data`")
    made.add_argument("--also", type=Path, action="append", default=[], help="another copy of it")
    key = made.add_mutually_exclusive_group(required=True)
    key.add_argument("--passphrase-file", type=Path)
    key.add_argument("--identity", type=Path, help="a recipient's private key")
    key.add_argument("--paper", type=Path, help="a text file with the lines of a paper key")
    made.add_argument("--identity-passphrase-file", type=Path)
    commands = made.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list restore points")
    disk = commands.add_parser("disk", help="write a disk as a raw image")
    disk.add_argument("point", help="an id, the begin of one, or VM@latest")
    disk.add_argument("target", help="vda, for example")
    disk.add_argument("output", type=Path)
    disk.add_argument("--best-effort", action="store_true", help="restore what can be read, list what cannot")
    artifacts = commands.add_parser("artifacts", help="write domain XML, NVRAM and so on into a directory")
    artifacts.add_argument("point")
    artifacts.add_argument("directory", type=Path)
    opens = commands.add_parser("open", help="write to standard output what an object holds, checked, without its seal")
    opens.add_argument("object", help="points/ID, for example; of a pack its table, with :ORDINAL an object of it")
    return made


def read_passphrase(path: Path) -> bytes:
    return path.read_bytes().rstrip(b"\r\n")


def keys_for(arguments: argparse.Namespace, folders: list[Path]) -> Keys:
    if arguments.passphrase_file:
        return keys_by_passphrase(folders, read_passphrase(arguments.passphrase_file))
    if arguments.paper:
        return keys_by_paper(folders, arguments.paper.read_text())
    if not arguments.identity_passphrase_file:
        parser().error("--identity needs --identity-passphrase-file")
    return keys_by_identity(folders, arguments.identity, read_passphrase(arguments.identity_passphrase_file))


def main() -> int:
    arguments = parser().parse_args()
    folders = [arguments.folder, *arguments.also]
    if blake3 is None:
        warn("the module blake3 is not installed: contents are checked by AES-GCM, not against their ids")
    try:
        repository = Repository(folders, keys_for(arguments, folders))
        if arguments.command == "list":
            return list_points(repository)
        if arguments.command == "open":
            return open_object(repository, arguments.object)
        if arguments.command == "artifacts":
            return restore_artifacts(repository, arguments.point, arguments.directory)
        return restore_disk(
            repository, arguments.point, arguments.target, arguments.output, best_effort=arguments.best_effort
        )
    except MALFORMED as error:
        warn(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
