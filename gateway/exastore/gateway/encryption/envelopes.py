"""Data keys and what wraps them.

Every object has a data key of its own. It is stored wrapped: by the master key for SSE-S3, by the
key that the client sends for SSE-C, which is never stored. To change the master key, one puts a new
one in front of its file: it wraps all new data keys, and older ones open what they wrapped.
"""

import os
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from exastore.gateway.encryption.frames import NONCE_BYTES
from exastore.gateway.master_key import MasterKey
from exastore.gateway.store import Encryption

KEY_BYTES = 32
ALGORITHM = "AES256"
_PURPOSE = "object data key"


def seal_for_master(
    master: MasterKey, new_bytes: Callable[[int], bytes] = os.urandom
) -> tuple[bytes, Encryption]:
    """A fresh data key, and its envelope."""
    data_key = new_bytes(KEY_BYTES)
    return data_key, Encryption(ALGORITHM, master.seal(data_key, _PURPOSE))


def open_with_master(master: MasterKey, encryption: Encryption) -> bytes:
    """The data key.

    Raises:
        MasterKeyError: The master key that wrapped it is not in the file any more.
    """
    return master.open(encryption.wrapped_key, _PURPOSE)


def rewrapped(master: MasterKey, encryption: Encryption) -> Encryption:
    """The same data key wrapped by the newest master key. Raises as `open_with_master`."""
    return Encryption(
        encryption.algorithm, master.seal(open_with_master(master, encryption), _PURPOSE)
    )


def seal_for_customer(
    customer_key: bytes, key_md5: str, new_bytes: Callable[[int], bytes] = os.urandom
) -> tuple[bytes, Encryption]:
    """A fresh data key, and its envelope.

    Args:
        customer_key: KEY_BYTES.
        key_md5: Its MD5 in base64, shown to those who read the object.
    """
    data_key, nonce = new_bytes(KEY_BYTES), new_bytes(NONCE_BYTES)
    wrapped = nonce + AESGCM(customer_key).encrypt(nonce, data_key, _PURPOSE.encode())
    return data_key, Encryption(ALGORITHM, wrapped, key_md5)


def open_with_customer(customer_key: bytes, encryption: Encryption) -> bytes | None:
    """The data key; None when the customer's key is not the one that wrapped it."""
    nonce, wrapped = encryption.wrapped_key[:NONCE_BYTES], encryption.wrapped_key[NONCE_BYTES:]
    try:
        return AESGCM(customer_key).decrypt(nonce, wrapped, _PURPOSE.encode())
    except (InvalidTag, ValueError):
        return None
