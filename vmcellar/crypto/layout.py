"""Every constant of the repository format, version 1, that is about keys. Each names its section of
docs/repository-format.md; the others are in `vmcellar/repository/layout.py`, which this room may not import.
"""

from __future__ import annotations

from typing import Final

KEYS: Final = "keys/"  # section 2
EPOCHS: Final = "epochs/"  # section 2

# Section 3: cryptography
DERIVE_INFO: Final = b"vmcellar 1 "  # what every context begins with
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
SEAL_OVERHEAD: Final = 16  # what AES-256-GCM adds: its tag
CHUNK_CONTEXT: Final = b"chunk id"
NODE_CONTEXT: Final = b"node id"
SIGNING_CONTEXT: Final = b"signing"
META_CONTEXT: Final = b"meta "  # then the kind
PACK_CONTEXT: Final = b"pack"
PACK_BOUND: Final = b"vmcellar data pack 1"  # then the pack's id
EPOCH_SEAL: Final = b"epoch"  # kinds of sealed metadata
MASTER_SEAL: Final = b"epoch key"
RECIPIENT_SEAL: Final = b"recipient"

# Section 4: key slots
DOCUMENT_FORMAT: Final = 1
CHECK_DIGITS: Final = 32  # of the SHA-256 of a document
PASSPHRASE_KIND: Final = "passphrase"  # noqa: S105  (the name of a kind)
HOST_KIND: Final = "host"
RECIPIENT_KIND: Final = "recipient"
SALT_BYTES: Final = 16
MEMORY_KIB_MOST: Final = 2 << 20  # 2 GiB
PASSES_MOST: Final = 64
LANES_MOST: Final = 64
WORK_KIB_MOST: Final = 4 << 20  # memory times passes: 4 GiB
MASTERS_KEPT: Final = 4  # data masters: a host that was running during a rotation still sealed to the one before
MLKEM_PUBLIC_BYTES: Final = 1184
X25519_BYTES: Final = 32
RECIPIENT_NAME: Final = b"vmcellar recipient 1 "  # then the public key
SECRETS_INFO: Final = b"vmcellar secrets 1 "  # then the object's name

# Section 4: epochs
EPOCH_BYTES: Final = 16
EPOCH_MAGIC: Final = b"vmcepoc\n"
EPOCH_INFO: Final = b"vmcellar epoch 1 "  # then the object's name
HOLDER_CONTEXT: Final = b"holder"
HOLDER_BYTES: Final = 8  # of that key name the holder
WRAP_CONTEXT: Final = b"wrap"


def epoch_name(epoch: bytes, holder: str) -> str:
    """The key of an epoch key that is sealed to one holder (section 2)."""
    return f"{EPOCHS}{epoch.hex()}-{holder}"
