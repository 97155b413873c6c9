"""Where compiled code is kept between processes, and how a file of it is trusted.

`$EXASTORE_CACHE_DIR`, else `$XDG_CACHE_HOME/exastore`, else `~/.cache/exastore`. Code is loaded
from there, so the folder is made for us alone, and a file that is not ours or that others can write
is not trusted. Where there can be no such folder (a service user without a home), every process
compiles for itself; what needs a folder gets a new temporary one.
"""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Final

ENVIRONMENT_VARIABLE: Final = "EXASTORE_CACHE_DIR"

_MAGIC: Final = b"exastore code 1\n"
_DIGEST_BYTES: Final = 32


def base_folder() -> Path:
    """The folder of all our caches."""
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "exastore"


def writable_folder(wanted: Path) -> Path:
    """This folder, made if need be; a private temporary one if that is impossible.

    The temporary one is new each time: code is loaded from it, so no other user may have made it.
    """
    # Imported here and below because a process that finds its code on the disk does without.
    import tempfile

    try:
        wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        # As root, or on a read-only file system, permission bits do not tell; a file does.
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError:
        return Path(tempfile.mkdtemp(prefix="exastore-code-"))


class CodeCache:
    """Files of machine code by key. A file with anything wrong is as if it were not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: bytes) -> Path:
        """The file of a key."""
        return self.folder / f"{hashlib.sha256(key).hexdigest()[:40]}.code"

    def load(self, key: bytes) -> bytes | None:
        """What was stored under the key; None if nothing was, or if it is not what was stored."""
        path = self.path(key)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                    return None
                content = file.read()
        except OSError:
            return None
        start = len(_MAGIC) + _DIGEST_BYTES
        if content[: len(_MAGIC)] != _MAGIC:
            return None
        payload = content[start:]
        return payload if content[len(_MAGIC) : start] == _digest(key, payload) else None

    def store(self, key: bytes, payload: bytes) -> None:
        """Keep it if that is possible. Processes may race: each file appears whole, at once."""
        import tempfile

        path = self.path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The file is ours alone from its creation on.
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".new-")
        except OSError:
            return
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + _digest(key, payload) + payload)
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)


def _digest(key: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(key + b"\0" + payload).digest()


@cache
def code_cache() -> CodeCache:
    """The cache of this process."""
    return CodeCache(base_folder() / "kernels")
