"""What the command line prints: results on stdout, progress and errors on stderr."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from exastore.deploy.errors import DeployError, StartFailed

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """A result for programs: JSON and nothing else on stdout."""
    print(json.dumps(value, indent=2))


def print_error(error: DeployError) -> None:
    """An operating error: what is wrong, what to do, and what the process said last."""
    if isinstance(error, StartFailed) and error.log_tail:
        err.print(f"last lines of the log of {error.process}:", style="bold")
        err.print("\n".join("  " + line for line in error.log_tail.splitlines()), markup=False)
    err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
    if error.hint:
        err.print(f"[bold]hint:[/] {escape(error.hint)}", soft_wrap=True)


def binary_size(size_bytes: float) -> str:
    """Bytes for people: "12.3 MiB"."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} EiB"


def duration(seconds: float | None) -> str:
    """Seconds for people: "1 min 05 s"; None is not known."""
    if seconds is None:
        return "not known yet"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


@contextmanager
def bar(text: str, total: int | None) -> Generator[Callable[[int], None]]:
    """A progress bar on stderr while the block runs; call what it gives with units done."""
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task(text, total=total)
        yield lambda count: progress.advance(task, count)
