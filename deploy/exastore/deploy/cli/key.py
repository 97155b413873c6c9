"""`exastore key ...`: the master key, which wraps the keys of objects and the secrets of users."""

import asyncio
from pathlib import Path

import typer

from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import out, print_json
from exastore.deploy.cli.user import UserCalls
from exastore.deploy.errors import BadInput
from exastore.deploy.files import write_atomically
from exastore.deploy.layout import ClusterPaths, read_cluster_file

app = typer.Typer(help="The master key: rotate it, wrap anew.", no_args_is_help=True)


@app.command("rotate")
def rotate(directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False) -> None:
    """Make a new master key: it wraps from now on, and the older ones still open.

    Gateways that run take it up when they are restarted, or first meet something that it wrapped.
    """
    from exastore.gateway.master_key import new_key_line

    path = _key_file(directory)
    line = new_key_line()
    write_atomically(path, line + path.read_text(encoding="ascii"), mode=0o600)
    count = len(path.read_text(encoding="ascii").splitlines())
    if json_output:
        print_json({"key_id": line.partition(" ")[0], "key_count": count})
    else:
        out.print(f"master key {line.partition(' ')[0]} wraps from now on; {count} can open")
        out.print("wrap what is there anew: exastore key rewrap")


@app.command("rewrap")
def rewrap(directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False) -> None:
    """Wrap the keys of all objects and the secrets of all users by the newest master key.

    No data is read or written.
    """
    from exastore.deploy.store_access import cluster_store
    from exastore.gateway.encryption.rewrapping import Rewrapped, rewrap_all
    from exastore.gateway.errors import MasterKeyError
    from exastore.gateway.master_key import read_master_key

    cluster = read_cluster_file(directory)
    path = _key_file(directory)

    async def run() -> Rewrapped:
        async with cluster_store(cluster) as store:
            return await rewrap_all(store.metadata, master)

    try:
        master = read_master_key(path)
        users = UserCalls.at(directory)
        resealed, secrets = users.reseal(master)
        done = asyncio.run(run())
    except MasterKeyError as error:
        raise BadInput(str(error), hint=f"put the missing key back into {path}") from error
    if json_output:
        print_json(
            {
                "rewrapped": done.rewrapped,
                "sealed": done.sealed,
                "uploads": done.uploads,
                "resealed_secrets": resealed,
                "secrets": secrets,
            }
        )
        return
    out.print(f"wrapped {done.rewrapped} of {done.sealed} keys of objects anew")
    out.print(f"sealed {resealed} of {secrets} secrets of users anew")
    if done.uploads:
        out.print(f"{done.uploads} uploads in progress keep theirs: rewrap again when they ended")


def _key_file(directory: Path) -> Path:
    path = ClusterPaths(directory.absolute()).master_key
    if not path.exists():
        raise BadInput(f"there is no master key in {directory}", hint="start the cluster once")
    return path
