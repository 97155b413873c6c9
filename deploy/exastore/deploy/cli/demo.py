"""`exastore demo`: the whole story on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from exastore.deploy.cli.output import out as console
from exastore.deploy.clock import SystemClock


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the report; an earlier demo's is replaced.")
    ] = Path("out/demo"),
    size_mib: Annotated[int, typer.Option(min=128, help="Least MiB of files to store.")] = 256,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the stopped cluster's data.")] = False,
) -> None:
    """Store real files, kill nodes, repair, verify, simulate ten years, write a report."""
    from exastore.deploy.demo.story import DemoOptions, run_demo

    options = DemoOptions(out, size_bytes=size_mib * 2**20, keep=keep)
    run_demo(options, console, SystemClock())
