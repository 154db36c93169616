"""How one secret becomes many keys: HKDF-SHA256 (RFC 5869) with a context of its own for every use."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmcellar.crypto.layout import DERIVE_INFO, KEY_BYTES


def derive(secret: bytes, context: bytes, salt: bytes = b"") -> bytes:
    """A 32-byte key for `context`; equal inputs give equal keys, and no key tells anything of another."""
    return HKDF(SHA256(), KEY_BYTES, salt or None, DERIVE_INFO + context).derive(secret)
