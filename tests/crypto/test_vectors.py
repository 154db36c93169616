"""Published vectors: the primitives are what the format says they are, and our derivations use them so."""

from __future__ import annotations

import hashlib
import hmac

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.crypto.store import MemoryStore
from vmcellar.crypto.derive import derive
from vmcellar.crypto.keyring import RepositoryKeyring
from vmcellar.crypto.pack_key import PackKey
from vmcellar.crypto.secrets import Secrets

SECRETS = Secrets(b"i" * 32, b"m" * 32, b"s" * 32, (b"d" * 32,))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for 32 bytes, from HMAC alone."""
    prk = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    return hmac.digest(prk, info + b"\x01", hashlib.sha256)


def test_hkdf_rfc_5869_case_1() -> None:
    secret, salt, info = bytes([0x0B]) * 22, bytes(range(13)), bytes(range(0xF0, 0xFA))
    want = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert HKDF(SHA256(), 42, salt, info).derive(secret).hex() == want
    assert hkdf(secret, salt, info).hex() == want[:64]


def test_hkdf_rfc_5869_case_3_without_salt() -> None:
    want = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert hkdf(bytes([0x0B]) * 22, b"", b"").hex() == want


def test_derive_is_hkdf_with_our_context() -> None:
    assert derive(b"k" * 32, b"pack", b"salt") == hkdf(b"k" * 32, b"salt", b"vmcellar 1 pack")
    assert derive(b"k" * 32, b"chunk id") == hkdf(b"k" * 32, b"", b"vmcellar 1 chunk id")


def test_argon2id_rfc_9106_section_5_3() -> None:
    kdf = Argon2id(
        salt=b"\x02" * 16, length=32, iterations=3, lanes=4, memory_cost=32, ad=b"\x04" * 12, secret=b"\x03" * 8
    )
    want = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
    assert kdf.derive(b"\x01" * 32).hex() == want


def test_blake3_keyed_official_vectors() -> None:
    key = b"whats the Elvish word for friend"
    data = bytes(i % 251 for i in range(1025))
    want = {
        0: "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26",
        1: "6d7878dfff2f485635d39013278ae14f1454b8c0a3a2d34bc1ab38228a80c95b",
        1025: "357dc55de0c7e382c900fd6e320acc04146be01db6a8ce7210b7189bd664ea69",
    }
    for length, digest in want.items():
        assert blake3(data[:length], key=key).hexdigest() == digest


def test_ids_are_keyed_blake3_under_keys_of_their_own() -> None:
    keyring = RepositoryKeyring(MemoryStore(), SECRETS)
    chunk_key, node_key = (hkdf(SECRETS.ids, b"", b"vmcellar 1 " + what) for what in (b"chunk id", b"node id"))
    data = memoryview(bytearray(b"x" * (1 << 20)))
    assert keyring.chunk_id(data) == blake3(data, key=chunk_key).digest()
    assert keyring.node_id(data) == blake3(data, key=node_key).digest()


def test_aes_256_gcm_nist_case_16() -> None:
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    bound = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = AESGCM(key).encrypt(bytes.fromhex("cafebabefacedbaddecaf888"), plain, bound)
    assert sealed[-16:].hex() == "76fc6ece0f4e1768cddf8853bb2d551b"


def test_an_object_of_a_pack_opens_with_the_primitives_alone() -> None:
    epoch_key, pack = b"e" * 32, b"p" * 16
    sealed = PackKey(epoch_key, pack).seal(258, b"disk bytes")
    key = hkdf(epoch_key, pack, b"vmcellar 1 pack")
    nonce = bytes([2, 1]) + bytes(10)
    assert AESGCM(key).decrypt(nonce, sealed, b"vmcellar data pack 1" + pack) == b"disk bytes"


def test_metadata_opens_with_the_primitives_alone() -> None:
    sealed = RepositoryKeyring(MemoryStore(), SECRETS).seal_meta(b"toc", b"name", b"rows")
    key = hkdf(SECRETS.meta, b"name", b"vmcellar 1 meta toc")
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], b"toc") == b"rows"
