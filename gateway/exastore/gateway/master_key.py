"""The master key: what secrets in the database are sealed under, and what never is there.

The file holds one key a line, `id base64`, 32 bytes each; the first seals, all open. So a new key
is put in front, and what was sealed before can still be read. A sealed value is

    version (1) | key id (8) | nonce (12) | AES-256-GCM ciphertext and tag

and is bound to a purpose, such as the id of the access key whose secret it is, and to no other.
"""

import base64
import binascii
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from exastore.gateway.errors import MasterKeyError

KEY_BYTES = 32
_VERSION = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = 12
_HEAD_BYTES = 1 + _ID_BYTES + _NONCE_BYTES


class MasterKey:
    """Seals and opens small values.

    Args:
        keys: By id of 8 bytes; the first one seals.
        new_nonce: Gives so many random bytes; a nonce that comes twice breaks the cipher.
        read_again: Gives the keys of now, when one is asked for that was not among them.
    """

    def __init__(
        self,
        keys: dict[bytes, bytes],
        new_nonce: Callable[[int], bytes] = os.urandom,
        read_again: Callable[[], dict[bytes, bytes]] | None = None,
    ) -> None:
        self._read_again = read_again
        self._new_nonce = new_nonce
        self._take(keys)

    def _take(self, keys: dict[bytes, bytes]) -> None:
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._first = next(iter(keys))

    def is_newest(self, sealed: bytes) -> bool:
        """Whether the first key sealed this."""
        return sealed[1 : 1 + _ID_BYTES] == self._first

    def seal(self, value: bytes, purpose: str) -> bytes:
        """The value, readable only with the key, for this purpose."""
        nonce = self._new_nonce(_NONCE_BYTES)
        head = _VERSION + self._first + nonce
        return head + self._ciphers[self._first].encrypt(nonce, value, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """What was sealed for this purpose.

        Raises:
            MasterKeyError: It was sealed with another key or for another purpose, or is damaged.
        """
        key_id = sealed[1 : 1 + _ID_BYTES]
        if key_id not in self._ciphers and self._read_again is not None:
            # Another process was told of a new key first.
            self._take(self._read_again())
        cipher = self._ciphers.get(key_id)
        if sealed[:1] != _VERSION or cipher is None:
            raise MasterKeyError("a secret was sealed with a master key that is not in the file")
        try:
            nonce = sealed[1 + _ID_BYTES : _HEAD_BYTES]
            return cipher.decrypt(nonce, sealed[_HEAD_BYTES:], purpose.encode())
        except (InvalidTag, ValueError):
            raise MasterKeyError("a sealed secret is damaged, or of another purpose") from None


def new_key_line() -> str:
    """A fresh key as a line of the file."""
    return f"{os.urandom(_ID_BYTES).hex()} {base64.b64encode(os.urandom(KEY_BYTES)).decode()}\n"


def read_master_key(path: Path) -> MasterKey:
    """Read the file, and again when it has a key that it had not. Raises as `read_keys`."""
    return MasterKey(read_keys(path), read_again=lambda: read_keys(path))


def read_keys(path: Path) -> dict[bytes, bytes]:
    """Read the file's keys by their ids, the first one first.

    Raises:
        MasterKeyError: It cannot be read, others may read it, or it is not of this form.
    """
    try:
        text = path.read_text(encoding="ascii")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise MasterKeyError(f"the master key file {path} cannot be read: {error}") from None
    if mode & 0o077:
        raise MasterKeyError(f"others may read the master key file {path}: chmod 600 {path}")
    keys: dict[bytes, bytes] = {}
    for line in text.splitlines():
        key_id, _, encoded = line.strip().partition(" ")
        try:
            key, identity = base64.b64decode(encoded, validate=True), bytes.fromhex(key_id)
        except (binascii.Error, ValueError):
            key = identity = b""
        if len(key) != KEY_BYTES or len(identity) != _ID_BYTES:
            raise MasterKeyError(f"a line of {path} is no key: expected an id and 32 bytes, base64")
        keys[identity] = key
    if not keys:
        raise MasterKeyError(f"the master key file {path} holds no key")
    return keys
