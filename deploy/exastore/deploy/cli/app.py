"""The root of the command line: sub-commands, version, and how errors end."""

import sys
from typing import Annotated

import typer

from exastore.deploy.cli import (
    bench,
    bucket,
    cluster,
    demo,
    key,
    object,
    service,
    sim,
    sim_durability,
    upkeep,
    user,
)
from exastore.deploy.cli.output import print_error
from exastore.deploy.errors import DeployError, ExitCode
from exastore.deploy.version import version

app = typer.Typer(
    name="exastore",
    help="An erasure-coded object store and an exabyte-scale simulator that share one brain.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("demo")(demo.demo)
app.add_typer(bench.app, name="bench")
app.add_typer(bucket.app, name="bucket")
upkeep.add_to(cluster.app)
app.add_typer(cluster.app, name="cluster")
app.add_typer(key.app, name="key")
app.add_typer(object.app, name="object")
sim.app.command("durability")(sim_durability.durability_command)
app.add_typer(sim.app, name="sim")
app.add_typer(user.app, name="user")
app.add_typer(service.node, name="node")
app.add_typer(service.metadata, name="metadata")
app.add_typer(service.gateway, name="gateway")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"exastore {version()}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """An erasure-coded object store and an exabyte-scale simulator that share one brain."""


def main() -> None:
    """Run the command line; operating errors end in one message and their exit code."""
    try:
        app()
    except DeployError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        sys.stderr.close()
        sys.exit(ExitCode.OK)
