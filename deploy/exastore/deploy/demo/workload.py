"""What the demo stores: files that exist on any machine with this package installed.

A sample of the Python standard library and of the installed wheels, and one large file. The sample
is by hash of the path, so the same machine gives the same objects every time.
"""

import hashlib
import os
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from exastore.deploy.errors import BadInput

MIN_FILE_COUNT = 1_000
MIN_LARGE_BYTES = 64 * 2**20
#: Beyond this the large file would be most of the demo's time.
MAX_LARGE_BYTES = 192 * 2**20
#: From here on a file counts as medium: few of them fill what the small ones leave.
MEDIUM_BYTES = 2**20
MAX_MEDIUM_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class WorkFile:
    """A file to be stored as an object."""

    key: str
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Workload:
    """The files of a demo."""

    files: list[WorkFile]
    large: WorkFile

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def collect(size_bytes: int, scratch: Path) -> Workload:
    """Choose the files: at least `size_bytes` and MIN_FILE_COUNT of them, the large one first.

    Args:
        size_bytes: Least total.
        scratch: Where an archive is made when no installed file is large enough.

    Raises:
        BadInput: There is not so much to store on this machine.
    """
    paths = sysconfig.get_paths()
    library, wheels = Path(paths["stdlib"]), Path(paths["purelib"])
    found = sorted(
        [*_walk(library, "stdlib"), *_walk(wheels, "wheels")], key=lambda file: _order(file.key)
    )
    large = _large_file(found, wheels, scratch)
    small = [file for file in found if file.size_bytes < MEDIUM_BYTES]
    medium = [
        file
        for file in found
        if MEDIUM_BYTES <= file.size_bytes <= MAX_MEDIUM_BYTES and file.path != large.path
    ]
    half = MIN_FILE_COUNT // 2
    chosen = [large]
    for source in ("stdlib/", "wheels/"):
        chosen += [file for file in small if file.key.startswith(source)][:half]
    taken = {file.key for file in chosen}
    rest = [file for file in (*medium, *small) if file.key not in taken]
    total = sum(file.size_bytes for file in chosen)
    for file in rest:
        if total >= size_bytes and len(chosen) > MIN_FILE_COUNT:
            break
        chosen.append(file)
        total += file.size_bytes
    if total < size_bytes:
        raise BadInput(
            f"the installed files are {total // 2**20} MiB, less than {size_bytes // 2**20} MiB",
            hint="ask for a smaller --size-mib",
        )
    return Workload(chosen, large)


def _walk(root: Path, prefix: str) -> Iterator[WorkFile]:
    """The regular files under `root`, without byte code and without another root's files."""
    skipped = {"__pycache__", "site-packages"}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            key = f"{prefix}/{path.relative_to(root).as_posix()}"
            yield WorkFile(key, path, path.stat().st_size)


def _order(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _large_file(found: Iterable[WorkFile], wheels: Path, scratch: Path) -> WorkFile:
    """The largest installed file that is not too large, or an archive of the wheels."""
    fitting = [file for file in found if MIN_LARGE_BYTES <= file.size_bytes <= MAX_LARGE_BYTES]
    if fitting:
        largest = max(fitting, key=lambda file: (file.size_bytes, file.key))
        return WorkFile(f"large/{largest.path.name}", largest.path, largest.size_bytes)
    archive = scratch / "wheels.tar"
    size_bytes = 0
    with tarfile.open(archive, "w") as tar:
        for file in _walk(wheels, "wheels"):
            tar.add(file.path, file.key, recursive=False)
            size_bytes += file.size_bytes
            if size_bytes >= MAX_LARGE_BYTES // 2:
                break
    return WorkFile("large/wheels.tar", archive, archive.stat().st_size)
