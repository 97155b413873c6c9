"""`exastore metadata run`, `node run`, `gateway run`: one process each, from a config file."""

from pathlib import Path
from typing import Annotated

import typer

from exastore.deploy.clock import SystemClock
from exastore.deploy.config import read_config
from exastore.deploy.process import run_process

ConfigOption = Annotated[
    Path, typer.Option("--config", help="TOML file with [process] and the service's own table.")
]

metadata = typer.Typer(help="Metadata servers.", no_args_is_help=True)
node = typer.Typer(help="Storage nodes.", no_args_is_help=True)
gateway = typer.Typer(help="S3 gateways.", no_args_is_help=True)


@metadata.callback()
@node.callback()
@gateway.callback()
def _group() -> None:
    """Keep `run` a sub-command of its own."""


@metadata.command("run")
def metadata_run(config: ConfigOption) -> None:
    """Run one metadata server until SIGTERM."""
    from exastore.metadata.kv.errors import EngineError
    from exastore.metadata.service.config import MetadataConfig
    from exastore.metadata.service.errors import ServiceError
    from exastore.metadata.service.server import MetadataServer

    values, process = read_config(config, "metadata", MetadataConfig)
    code = run_process(
        "metadata",
        values.address,
        process,
        lambda registry: MetadataServer(values, clock=SystemClock(), registry=registry),
        (EngineError, ServiceError, ValueError),
    )
    raise typer.Exit(code)


@node.command("run")
def node_run(config: ConfigOption) -> None:
    """Run one storage node until SIGTERM."""
    from exastore.storage.config import StorageConfig
    from exastore.storage.errors import StorageError
    from exastore.storage.server import StorageNode

    values, process = read_config(config, "node", StorageConfig)
    code = run_process(
        "node",
        values.address,
        process,
        lambda registry: StorageNode(values, clock=SystemClock(), registry=registry),
        (StorageError, ValueError),
    )
    raise typer.Exit(code)


@gateway.command("run")
def gateway_run(config: ConfigOption) -> None:
    """Run one S3 gateway until SIGTERM."""
    from exastore.gateway.config import GatewayConfig
    from exastore.gateway.errors import GatewayError
    from exastore.gateway.server import Gateway

    values, process = read_config(config, "gateway", GatewayConfig)
    code = run_process(
        "gateway",
        values.address,
        process,
        lambda registry: Gateway(values, clock=SystemClock(), registry=registry),
        (GatewayError, ValueError),
    )
    raise typer.Exit(code)
