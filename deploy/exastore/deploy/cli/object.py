"""`exastore object ...`: objects without S3, straight to the metadata server and the nodes."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import bar, binary_size, out, print_json
from exastore.deploy.errors import BadInput, DeployError, ExitCode
from exastore.deploy.layout import read_cluster_file

if TYPE_CHECKING:
    from exastore.gateway.store import ObjectInfo

app = typer.Typer(help="Objects, without S3.", no_args_is_help=True)

TargetArgument = Annotated[str, typer.Argument(help="BUCKET/KEY", show_default=False)]


def _split(target: str) -> tuple[str, str]:
    bucket, _, key = target.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise BadInput(f'"{target}" names no object: write BUCKET/KEY')
    return bucket, key


def _as_json(info: "ObjectInfo") -> dict[str, object]:
    return {
        "bucket": info.bucket,
        "key": info.key,
        "size_bytes": info.size_bytes,
        "etag": info.etag,
        "modified_s": info.modified_s,
    }


@app.command()
def put(
    file: Annotated[Path, typer.Argument(help="File to store.", show_default=False)],
    target: TargetArgument,
    directory: DirOption = DEFAULT_DIR,
    create_bucket: Annotated[
        bool, typer.Option("--create-bucket", help="Make the bucket if it is not there.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Store a file as an object."""
    from exastore.deploy.store_access import put_file

    bucket, key = _split(target)
    if not file.is_file():
        raise BadInput(f"there is no file {file}")
    cluster = read_cluster_file(directory)
    with bar(f"storing {key}", file.stat().st_size) as done:
        info = asyncio.run(
            put_file(cluster, file, bucket, key, create_bucket=create_bucket, done=done)
        )
    if json_output:
        print_json(_as_json(info))
    else:
        out.print(f"stored {bucket}/{key}: {binary_size(info.size_bytes)}", markup=False)


@app.command()
def get(
    target: TargetArgument,
    file: Annotated[
        Path | None, typer.Argument(help="Where to; the key's last part if left out.")
    ] = None,
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Read an object into a file."""
    from exastore.deploy.store_access import get_file

    bucket, key = _split(target)
    path = file or Path(key.rstrip("/").rpartition("/")[2])
    if path.is_dir():
        path = path / key.rstrip("/").rpartition("/")[2]
    if not path.parent.is_dir():
        raise BadInput(f"there is no folder {path.parent}")
    cluster = read_cluster_file(directory)
    with bar(f"reading {key}", None) as done:
        info = asyncio.run(get_file(cluster, bucket, key, path, done=done))
    if json_output:
        print_json({**_as_json(info), "file": str(path)})
    else:
        out.print(f"read {binary_size(info.size_bytes)} into {path}", markup=False)


@app.command("ls")
def list_command(
    prefix: Annotated[
        str, typer.Argument(help="BUCKET or BUCKET/PREFIX; nothing lists the buckets.")
    ] = "",
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """List buckets, or the objects of one."""
    from exastore.deploy.store_access import list_buckets, list_objects

    cluster = read_cluster_file(directory)
    bucket, _, key_prefix = prefix.removeprefix("s3://").partition("/")
    if not bucket:
        buckets = asyncio.run(list_buckets(cluster))
        if json_output:
            print_json({"buckets": buckets})
        for name in [] if json_output else buckets:
            out.print(name, markup=False)
        return
    objects = asyncio.run(list_objects(cluster, bucket, key_prefix))
    if json_output:
        print_json({"objects": [_as_json(info) for info in objects]})
        return
    for info in objects:
        out.print(f"{info.size_bytes:>14,}  {info.key}", markup=False, soft_wrap=True)


@app.command("rm")
def remove(
    targets: Annotated[list[str], typer.Argument(help="BUCKET/KEY ...", show_default=False)],
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Delete objects; exit code 1 if one was not there."""
    from exastore.deploy.store_access import delete_objects

    cluster = read_cluster_file(directory)
    by_bucket: dict[str, list[str]] = {}
    for target in targets:
        bucket, key = _split(target)
        by_bucket.setdefault(bucket, []).append(key)
    missing: list[str] = []
    for bucket, keys in by_bucket.items():
        existed = asyncio.run(delete_objects(cluster, bucket, keys))
        missing += [
            f"{bucket}/{key}" for key, there in zip(keys, existed, strict=True) if not there
        ]
    deleted_count = len(targets) - len(missing)
    if json_output:
        print_json({"deleted_count": deleted_count, "missing": missing})
        if missing:
            raise typer.Exit(ExitCode.FAILED)
        return
    out.print(f"deleted {deleted_count}")
    if missing:
        raise DeployError(f"not there: {', '.join(missing)}")
