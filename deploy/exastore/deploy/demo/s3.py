"""The demo's S3 client: boto3 as it comes, many threads, every object's SHA-256 kept."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from exastore.deploy.demo.workload import WorkFile
from exastore.deploy.layout import ClusterFile

THREAD_COUNT = 8
#: Files of at least this size go up and come down in parts, in parallel.
PART_BYTES = 16 * 2**20
READ_BYTES = 2**20

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that was acknowledged."""

    key: str
    size_bytes: int
    sha256: str


class DemoClient:
    """One bucket of a cluster."""

    def __init__(self, cluster: ClusterFile, bucket: str) -> None:
        s3 = cluster["s3"]
        self.bucket = bucket
        self._s3: Any = boto3.client(
            "s3",
            endpoint_url=s3["endpoint"],
            aws_access_key_id=s3["access_key"],
            aws_secret_access_key=s3["secret_key"],
            region_name="us-east-1",
            config=Config(
                max_pool_connections=4 * THREAD_COUNT,
                retries={"max_attempts": 5, "mode": "standard"},
                s3={"addressing_style": "path"},
                proxies={},
            ),
        )
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
        )

    def create_bucket(self) -> None:
        """Make the bucket."""
        self._s3.create_bucket(Bucket=self.bucket)

    def put_file(self, file: WorkFile) -> StoredObject:
        """Store a file."""
        if file.size_bytes >= PART_BYTES:
            digest = file_sha256(file.path)
            self._s3.upload_file(str(file.path), self.bucket, file.key, Config=self._transfer)
            return StoredObject(file.key, file.size_bytes, digest)
        return self.put_bytes(file.key, file.path.read_bytes())

    def put_bytes(self, key: str, data: bytes) -> StoredObject:
        """Store bytes."""
        self._s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        return StoredObject(key, len(data), hashlib.sha256(data).hexdigest())

    def sha256(self, key: str) -> str:
        """Read an object and hash it."""
        digest = hashlib.sha256()
        body = self._s3.get_object(Bucket=self.bucket, Key=key)["Body"]
        for piece in body.iter_chunks(READ_BYTES):
            digest.update(piece)
        return digest.hexdigest()

    def is_intact(self, stored: StoredObject) -> bool:
        """Whether the object reads back as it was stored."""
        return self.sha256(stored.key) == stored.sha256


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_parallel(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT]
) -> Iterator[tuple[ItemT, ResultT]]:
    """Do `work` on every item with THREAD_COUNT threads; results as they come.

    The first error ends it: what has not begun is not done.
    """
    pool = ThreadPoolExecutor(THREAD_COUNT, thread_name_prefix="s3")
    try:
        pending: dict[Future[ResultT], ItemT] = {pool.submit(work, item): item for item in items}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def total_bytes(objects: Iterable[StoredObject]) -> int:
    """Sum of sizes."""
    return sum(item.size_bytes for item in objects)
