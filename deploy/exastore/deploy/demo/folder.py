"""The demo's output folder: only what an earlier demo marked as its own is ever cleaned."""

import shutil
from pathlib import Path

from exastore.deploy.errors import BadInput
from exastore.deploy.launcher import LocalCluster

MARKER = ".exastore-demo"
#: What a demo writes, and so what cleaning removes.
CONTENTS = ("cluster", "sim", "scratch", "report.html", "summary.json")


def prepare(out: Path) -> None:
    """Make `out` an empty, marked folder.

    Raises:
        BadInput: It holds something else's files.
    """
    marker = out / MARKER
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is not a folder", hint="choose another --out")
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise BadInput(
            f"{out} is not empty and no demo made it", hint="choose another --out, or empty it"
        )
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by `exastore demo`, which replaces what is here.\n")
    local = LocalCluster.at(out / "cluster")
    if local.children():
        # An earlier demo was killed before it could stop its cluster.
        local.down()
    for name in CONTENTS:
        remove(out / name)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
