"""Writes inventories: now and then every gateway looks which are due, and one of them writes each.

Laws:
1. A report counts once its manifest is there. The manifest is created on condition that there is
   none, under a name that follows from its time: of gateways that write at the same time one wins,
   and the others delete their files.
2. Who writes notes so in a document of the bucket, for a while (`_LEASE_S`): others leave it alone
   meanwhile. That saves work; what is right rests on law 1.
3. Files go to a bucket of the same owner, as it is when they are written.
4. Memory is bounded by the rows of one file, however large the bucket is.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from exastore.gateway.encryption.envelopes import seal_for_master
from exastore.gateway.errors import GatewayError, RequestError
from exastore.gateway.inventory.columns import Source, columns_of
from exastore.gateway.inventory.files import SUFFIXES, DataFile, data_file, manifest_of
from exastore.gateway.master_key import MasterKey
from exastore.gateway.s3.acl import ENFORCED
from exastore.gateway.s3.body import StoredBody
from exastore.gateway.s3.bucket_access import load_bucket
from exastore.gateway.s3.inventory import Inventory, inventories_of
from exastore.gateway.s3.sse import Sealing
from exastore.gateway.store import (
    BucketInfo,
    Deletion,
    ObjectAttributes,
    ObjectInfo,
    ObjectStore,
    Precondition,
)
from exastore.metadata.core.clock import Clock

logger = logging.getLogger(__name__)

_PAGE_KEYS = 1000
#: Rows of a file: some 100 MiB while they are gathered.
_FILE_ROWS = 200_000
_LEASE_S = 120.0
#: Rounds a day.
_ROUNDS = 24


@dataclass(frozen=True, slots=True)
class _State:
    """What is known of the reports of an inventory."""

    done_s: float = 0.0
    """When the last one was begun."""
    holder: str = ""
    until_s: float = 0.0
    """Until when `holder` may be writing one."""

    def to_json(self) -> bytes:
        return json.dumps([self.done_s, self.holder, self.until_s]).encode()


class InventoryJob:
    """Start it once, stop it once."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        clock: Clock,
        day_s: float,
        master_key: MasterKey | None = None,
        file_rows: int = _FILE_ROWS,
    ) -> None:
        """Args:
        day_s: Seconds of the day of Daily and Weekly.
        """
        self._store = store
        self._clock = clock
        self._day_s = day_s
        self._master_key = master_key
        self._file_rows = file_rows
        self._name = os.urandom(8).hex()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._day_s / _ROUNDS)
            try:
                await self.run_round()
            except GatewayError as error:
                logger.warning("inventories wait: %s", error)

    async def run_round(self) -> None:
        """Write what is due."""
        for bucket in await self._store.list_buckets():
            try:
                documents = await self._store.get_bucket_documents(bucket.name)
            except GatewayError:
                continue  # it was deleted meanwhile
            for inventory, _ in inventories_of(documents):
                if inventory.is_enabled:
                    stored = documents.get(inventory.state_name)
                    state = _State() if stored is None else _State(*json.loads(stored))
                    await self._write_if_due(bucket, inventory, state)

    async def _write_if_due(self, bucket: BucketInfo, inventory: Inventory, state: _State) -> None:
        now_s = self._clock.now_s()
        period_s = self._day_s * (7 if inventory.is_weekly else 1)
        is_others = state.holder != self._name and state.until_s > now_s
        if now_s < state.done_s + period_s or is_others:
            return
        report = _Report(self._store, bucket, inventory, now_s, self._file_rows, self._master_key)
        try:
            await self._note(bucket, inventory, _State(state.done_s, self._name, now_s + _LEASE_S))
            async for _ in report.write():
                until_s = self._clock.now_s() + _LEASE_S
                await self._note(bucket, inventory, _State(state.done_s, self._name, until_s))
            await self._note(bucket, inventory, _State(now_s))
        except GatewayError as error:
            logger.warning("inventory %s of %s: %s", inventory.id, bucket.name, error)
            await report.discard()

    async def _note(self, bucket: BucketInfo, inventory: Inventory, state: _State) -> None:
        await self._store.put_bucket_document(bucket.name, inventory.state_name, state.to_json())


class _Report:
    """One report on its way."""

    def __init__(
        self,
        store: ObjectStore,
        bucket: BucketInfo,
        inventory: Inventory,
        now_s: float,
        file_rows: int,
        master_key: MasterKey | None,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._inventory = inventory
        self._now_s = now_s
        self._file_rows = file_rows
        self._master_key = master_key
        self._columns = columns_of(inventory.fields, all_versions=inventory.all_versions)
        self._files: list[DataFile] = []
        self._is_sealed = inventory.is_sealed
        prefix = inventory.prefix.rstrip("/")
        self._base = "/".join(filter(None, (prefix, bucket.name, inventory.id)))

    async def write(self) -> AsyncIterator[None]:
        """Write all; yields after each file, so that the lease can be renewed.

        Raises:
            RequestError: InvalidS3DestinationBucket, and those of the store.
        """
        inventory = self._inventory
        there = await load_bucket(self._store, inventory.destination)
        if there.owner != self._bucket.owner:
            raise RequestError("InvalidS3DestinationBucket", "The destination is another owner's.")
        self._is_sealed = self._is_sealed or there.encryption is not None
        access = await load_bucket(self._store, self._bucket.name)
        source = Source(self._bucket.name, self._bucket.owner, access.ownership != ENFORCED)
        rows: list[ObjectInfo] = []
        async for page in self._pages():
            rows.extend(page)
            if len(rows) >= self._file_rows:
                await self._write_file(rows, source)
                rows = []
                yield
        if rows or not self._files:
            await self._write_file(rows, source)
            yield
        await self._publish(source)

    async def discard(self) -> None:
        """Delete the files, which no manifest names."""
        if self._files:
            deletions = [Deletion(file.key, file.version_id) for file in self._files]
            with suppress(GatewayError):
                await self._store.delete_objects(self._inventory.destination, deletions)

    async def _publish(self, source: Source) -> None:
        inventory = self._inventory
        when = datetime.fromtimestamp(self._now_s, UTC)
        made = manifest_of(
            source,
            inventory.destination,
            self._now_s,
            self._columns,
            inventory.file_format,
            self._files,
        )
        folder = f"{self._base}/{when:%Y-%m-%dT%H-%MZ}"
        json_type = "application/json"
        try:
            await self._put(f"{folder}/manifest.json", made.manifest, json_type, is_new=True)
        except RequestError as error:
            if error.code != "PreconditionFailed":
                raise
            await self.discard()  # another gateway was first
            return
        await self._put(f"{folder}/manifest.checksum", made.checksum, "text/plain")
        dated = f"{self._base}/hive/dt={when:%Y-%m-%d-%H-%M}/symlink.txt"
        await self._put(dated, made.symlink, "text/plain")

    async def _write_file(self, rows: Sequence[ObjectInfo], source: Source) -> None:
        file_format = self._inventory.file_format
        # In a thread: compressing takes a while, and clients wait.
        content = await asyncio.to_thread(data_file, rows, self._columns, source, file_format)
        name = f"{os.urandom(16).hex()}.{SUFFIXES[file_format]}"
        info = await self._put(f"{self._base}/data/{name}", content, "application/octet-stream")
        version_id = info.version_id if info.is_versioned else ""
        self._files.append(DataFile(info.key, info.size_bytes, info.etag, version_id))

    async def _put(
        self, key: str, content: bytes, content_type: str, *, is_new: bool = False
    ) -> ObjectInfo:
        sealing = Sealing()
        if self._is_sealed:
            if self._master_key is None:
                raise RequestError("NotImplemented", "This gateway has no master key.")
            sealing = Sealing(*seal_for_master(self._master_key))
        return await self._store.put_object(
            self._inventory.destination,
            key,
            sealing.body(StoredBody(_one(content))),
            sealing.attributes(ObjectAttributes(content_type)),
            Precondition(must_not_exist=is_new),
        )

    async def _pages(self) -> AsyncIterator[Sequence[ObjectInfo]]:
        bucket, prefix = self._bucket.name, self._inventory.source_prefix
        marker, version_marker = "", ""
        while True:
            if self._inventory.all_versions:
                versions = await self._store.list_versions(
                    bucket,
                    prefix=prefix,
                    delimiter="",
                    key_marker=marker,
                    version_id_marker=version_marker,
                    max_keys=_PAGE_KEYS,
                )
                yield versions.versions
                marker, version_marker = versions.next_key_marker, versions.next_version_id_marker
                is_last = not versions.truncated
            else:
                page = await self._store.list_objects(
                    bucket, prefix=prefix, delimiter="", start_after=marker, max_keys=_PAGE_KEYS
                )
                yield page.objects
                marker, is_last = page.next_start_after, not page.truncated
            if is_last:
                return


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content
