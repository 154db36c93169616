"""Makes wrong inputs out of right ones: of bytes, of JSON and YAML text by tokens, of documents with a checksum."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from vmcellar.crypto import documents

_ODD_NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 1 << 20, (1 << 20) + 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|[A-Za-z_]+|\s+|.', re.DOTALL)
_ODD_TOKENS = (
    b"null", b"true", b"-1", b"0", b"1e999", b"-1e999", b"NaN", b"1" * 400, b"9223372036854775808", b"1.5", b'""',
    b'"\\ud800"', b'"\\u0000"', b'"../../etc"', b'"' + b"f" * 64 + b'"', b"{}", b"[]", b"[[]]", b"[" * 3000,
    b'{"a":' * 3000, b",", b":", b"}", b"]", b"\xff", b"\x00", b"\xed\xa0\x80", b"&a", b"*a", b"<<", b"---", b"|",
    b"!!python/object:os.system", b">", b"\t", b"'", b"~", b"? ", b"1:2:3", b"0o17", b"2026-11-28", b"10 MiB",
    b"9" * 60 + b" TiB",
)  # fmt: skip


def mutate(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with one to four random changes of its bytes."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        _change(dice, data, seeds)
    return bytes(data)


def _change(dice: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    what = dice.randrange(9)
    place = dice.randrange(len(data) + 1)
    if what <= 1 and place < len(data):
        data[place] ^= 1 << dice.randrange(8)
    elif what == 2 and place < len(data):
        data[place] = dice.randrange(256)
    elif what <= 4:
        size = dice.choice((1, 2, 4, 8))
        place -= place % size  # fields lie on multiples of their size
        number = dice.choice(_ODD_NUMBERS) + dice.choice((-1, 0, 0, 1)) if dice.random() < 0.7 else dice.getrandbits(63)
        data[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    elif what == 5:
        del data[place:]
    elif what == 6:
        data[place:place] = dice.randbytes(dice.choice((1, 4, 16, 48, 4096)))
    elif what == 7:
        del data[place : place + dice.choice((1, 4, 16, 48))]
    else:
        other = dice.choice(seeds)
        start = dice.randrange(len(other) + 1)
        data[place:] = other[start:]


def mutate_text(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with one to three of its tokens replaced, dropped, repeated or swapped; or changed as bytes."""
    if dice.random() < 0.2:
        return mutate(dice, seeds)
    tokens = _TOKEN.findall(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 2, 3))):
        place = dice.randrange(len(tokens)) if tokens else 0
        what = dice.randrange(6)
        if what <= 2:
            tokens[place : place + 1] = [dice.choice(_ODD_TOKENS)]
        elif what == 3:
            del tokens[place : place + dice.choice((1, 2, 4, 8))]
        elif what == 4:
            tokens[place:place] = tokens[place : place + dice.choice((1, 4, 8))]
        elif tokens:
            other = dice.randrange(len(tokens))
            tokens[place], tokens[other] = tokens[other], tokens[place]
    return b"".join(tokens)


def mutate_document(dice: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A changed key document, mostly with the checksum that belongs to it, so that what lies behind it is reached."""
    data = mutate_text(dice, seeds)
    if dice.random() < 0.1:
        return data
    try:
        fields = json.loads(data)
        kind = fields.pop("kind")
        for name in ("check", "format"):
            fields.pop(name, None)
        return documents.encode(kind, fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return data
