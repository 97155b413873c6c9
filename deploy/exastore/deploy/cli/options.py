"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

DirOption = Annotated[
    Path,
    typer.Option(
        "--dir", envvar="EXASTORE_CLUSTER", help="Directory of the cluster.", show_default=True
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_DIR = Path("exastore-cluster")
