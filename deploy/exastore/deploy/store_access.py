"""Access to a local cluster's objects and chunks without S3, with the gateway's own data path."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prometheus_client import CollectorRegistry

from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import BadInput, ClusterUnhealthy, DeployError
from exastore.deploy.layout import ClusterFile
from exastore.gateway.cluster_store import ClusterStore, open_cluster_store
from exastore.gateway.config import GatewayConfig
from exastore.gateway.errors import GatewayError, RequestError, ServiceError
from exastore.gateway.s3.context import OWNER
from exastore.gateway.store import Deletion, ObjectAttributes, ObjectInfo, Precondition
from exastore.gateway.verifier import VerifyReport, verify
from exastore.proto.channel import keep_grpc_running

READ_BYTES = 2**20

BytesDone = Callable[[int], None]


def gateway_config(cluster: ClusterFile) -> GatewayConfig:
    """A configuration that reaches the cluster."""
    return GatewayConfig(metadata=tuple(item["address"] for item in cluster["metadata"]))


@asynccontextmanager
async def cluster_store(cluster: ClusterFile) -> AsyncGenerator[ClusterStore]:
    """The cluster's object store, its errors turned into ours."""
    keep_grpc_running()
    store = await open_cluster_store(
        gateway_config(cluster), clock=SystemClock(), registry=CollectorRegistry()
    )
    try:
        yield store
    except GatewayError as error:
        raise deploy_error(error) from error
    finally:
        await store.close()


def deploy_error(error: GatewayError) -> DeployError:
    """The gateway's error with the exit code it deserves."""
    match error:
        case RequestError(code="NoSuchBucket"):
            return BadInput(error.message, hint="make it: exastore object put --create-bucket ...")
        case RequestError():
            return BadInput(error.message)
        case ServiceError():
            return ClusterUnhealthy(
                str(error), hint="try again; `exastore cluster status` shows what is wrong"
            )
        case _:
            return DeployError(str(error))


async def _verify(cluster: ClusterFile, progress: Callable[[VerifyReport], None]) -> VerifyReport:
    keep_grpc_running()
    return await verify(gateway_config(cluster), clock=SystemClock(), progress=progress)


def scrub(cluster: ClusterFile, progress: Callable[[VerifyReport], None]) -> VerifyReport:
    """Read every chunk of every stripe and check it.

    Raises:
        ClusterUnhealthy: The walk could not be made.
    """
    try:
        return asyncio.run(_verify(cluster, progress))
    except GatewayError as error:
        raise deploy_error(error) from error


@dataclass(slots=True)
class FileBody:
    """The bytes of a file as the store wants them. `Body` of `exastore.gateway.store`."""

    file: BinaryIO
    done: BytesDone

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self.file.read, READ_BYTES):
            yield piece
            self.done(len(piece))

    def finish(self) -> Mapping[str, str]:
        """Nothing was promised, so nothing can be broken."""
        return {}


async def put_file(
    cluster: ClusterFile,
    path: Path,
    bucket: str,
    key: str,
    *,
    create_bucket: bool,
    done: BytesDone,
) -> ObjectInfo:
    """Store a file."""
    async with cluster_store(cluster) as store:
        if create_bucket:
            try:
                await store.create_bucket(bucket, owner=OWNER)
            except RequestError as error:
                if error.code != "BucketAlreadyOwnedByYou":
                    raise
        with path.open("rb") as file:
            return await store.put_object(
                bucket, key, FileBody(file, done), ObjectAttributes(), Precondition()
            )


async def get_file(
    cluster: ClusterFile, bucket: str, key: str, path: Path, *, done: BytesDone
) -> ObjectInfo:
    """Read an object into a file, which appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        async with cluster_store(cluster) as store:
            reader = await store.open_object(bucket, key)
            with temporary.open("wb") as file:
                async for piece in reader.read():
                    file.write(piece)
                    done(len(piece))
        temporary.replace(path)
        return reader.info
    finally:
        temporary.unlink(missing_ok=True)


async def list_objects(cluster: ClusterFile, bucket: str, prefix: str) -> list[ObjectInfo]:
    """Every object of a bucket under a prefix."""
    found: list[ObjectInfo] = []
    async with cluster_store(cluster) as store:
        start_after = ""
        while True:
            page = await store.list_objects(
                bucket, prefix=prefix, delimiter="", start_after=start_after, max_keys=1_000
            )
            found += page.objects
            if not page.truncated:
                return found
            start_after = page.next_start_after


async def list_buckets(cluster: ClusterFile) -> list[str]:
    """Names of all buckets."""
    async with cluster_store(cluster) as store:
        return [bucket.name for bucket in await store.list_buckets()]


async def delete_objects(cluster: ClusterFile, bucket: str, keys: list[str]) -> list[bool]:
    """Delete objects; true where there was one."""
    existed: list[bool] = []
    async with cluster_store(cluster) as store:
        for start in range(0, len(keys), 1_000):
            deletions = [Deletion(key) for key in keys[start : start + 1_000]]
            existed += [item.existed for item in await store.delete_objects(bucket, deletions)]
    return existed
