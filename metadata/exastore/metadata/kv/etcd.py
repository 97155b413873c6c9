"""etcd as an engine: optimistic transactions on the store of three members, one of which may die.

Laws:
1. A snapshot is a revision of the store. Its first read is linearizable, so it includes every
   commit acknowledged before; all later ones name its revision.
2. A commit is one etcd transaction. It compares the revision of every key read, absent ones
   included, and of every range scanned: a range comparison sees insertions and changes but no
   deletions, so each key that a scan returned is compared too. If all hold, the snapshot is still
   the newest version of what was read, and the commit takes its place there.
3. etcd takes at most 128 comparisons and 128 operations at once. The limits of the contract fit
   into that; several functions share a commit only as far as they do.

Fault model: a member dies, restarts, lags, loses the others or stops answering: its calls fail or
time out, and the next member is asked. Without a majority nothing is served. The answer to a commit
may be lost: `CommitUnknown`. The database reaches its quota: `EngineFull`, deletions still work.

Housekeeping: old versions are forgotten by us, see `_Compaction`; the space they leave inside
etcd's files is used again. Giving it back to the disk (`etcdctl defrag`) stops a member for a while
and is the operator's.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import grpc
import grpc.aio

from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.kv.contract import LIMITS
from exastore.metadata.kv.errors import (
    CommitUnknown,
    Conflict,
    EngineError,
    EngineFull,
    EngineUnavailable,
    Unreachable,
)
from exastore.metadata.kv.remote import PATIENCE_S, RemoteEngine, Snapshot
from exastore.metadata.kv.replay import Batch, RangeRead, Reads, SnapshotCache
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.v1 import etcd_pb2

#: etcd's `--max-txn-ops`, as it comes.
_OPERATION_COUNT_MAX = 128
#: Rows of one answer: with the longest values they still fit into a message.
_PAGE_COUNT = 500
_READ_S = 2.0
_COMMIT_S = 5.0
COMPACT_EVERY_S = 60.0
#: A member that knows no leader refuses at once, instead of letting us wait.
_METADATA = (("hasleader", "true"),)

_Status = grpc.StatusCode


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...


_Response = TypeVar("_Response", covariant=True)


class _ResponseType(Protocol[_Response]):
    def FromString(self, s: bytes) -> _Response: ...


def open_etcd(
    url: str, *, patience_s: float = PATIENCE_S, compact_every_s: float = COMPACT_EVERY_S
) -> RemoteEngine:
    """An engine on "etcd://host:port,host:port,host:port/prefix"; it connects when it is used.

    Args:
        url: All members, and what our keys begin with, so that others may use the same etcd.
        patience_s: Seconds for which a function is tried while there is no majority.
        compact_every_s: Seconds for which old versions are kept, at least.

    Raises:
        EngineUnavailable: The URL is none.
    """
    parts = urlsplit(url)
    endpoints = parts.netloc.split(",")
    prefix = unquote(parts.path).strip("/")
    if not prefix or not all(host and port for host, _, port in map(_split, endpoints)):
        raise EngineUnavailable(
            f'the engine\'s URL {url!r} is not of the form "etcd://host:port,host:port/prefix"'
        )
    backend = EtcdBackend(endpoints, prefix.encode() + b"/", compact_every_s)
    return RemoteEngine(backend, patience_s=patience_s)


def _split(endpoint: str) -> tuple[str, str, str]:
    return endpoint.rpartition(":")


class EtcdBackend:
    """`Backend` over the members of one etcd.

    Args:
        endpoints: host:port of each member.
        prefix: What all keys of this store begin with.
        compact_every_s: See `open_etcd`.
    """

    def __init__(self, endpoints: Sequence[str], prefix: bytes, compact_every_s: float) -> None:
        self.name = f"etcd://{','.join(endpoints)}/{prefix.decode().rstrip('/')}"
        self.prefix = prefix
        self._endpoints = list(endpoints)
        #: Index of the member that answers.
        self._current = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.compaction = _Compaction(self, compact_every_s)

    @asynccontextmanager
    async def snapshot(self, *, read_only: bool, conflict_count: int) -> AsyncGenerator[Snapshot]:
        yield _EtcdSnapshot(self)

    def new_batch(self) -> Batch:
        return Batch(
            read_only=False,
            read_count_max=_OPERATION_COUNT_MAX,
            mutation_count_max=_OPERATION_COUNT_MAX,
            written_bytes_max=LIMITS.transaction_bytes,
        )

    async def close(self) -> None:
        await self.compaction.close()
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def call(
        self, method: str, request: _Message, kind: _ResponseType[_Response], timeout_s: float
    ) -> _Response:
        """Ask the current member; after a failure the next one is current.

        Raises:
            grpc.aio.AioRpcError: It failed.
        """
        index = self._current
        endpoint = self._endpoints[index]
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = grpc.aio.insecure_channel(
                endpoint,
                options=(*channel_options(METADATA_MESSAGE_BYTES), ("grpc.enable_retries", 0)),
            )
            self._channels[endpoint] = channel
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, _Response]
        call = channel.unary_unary(method, response_deserializer=kind.FromString)
        try:
            return await call(request.SerializeToString(), timeout=timeout_s, metadata=_METADATA)
        except grpc.aio.AioRpcError:
            if self._current == index:
                self._current = (index + 1) % len(self._endpoints)
            raise

    def translated(self, error: grpc.aio.AioRpcError) -> EngineError:
        """etcd's error as one of ours, for a call that surely changed nothing."""
        code, text = error.code(), error.details() or ""
        if code == _Status.OUT_OF_RANGE:  # the revision was compacted, or this member lags behind
            return Conflict(text)
        if code == _Status.RESOURCE_EXHAUSTED and "space" in text:
            return EngineFull(
                f"no space left for the metadata engine {self.name}: its database is as large as "
                "its quota. Delete objects, then compact, `etcdctl defrag` and "
                "`etcdctl alarm disarm`; or raise --quota-backend-bytes"
            )
        if code in (_Status.INVALID_ARGUMENT, _Status.PERMISSION_DENIED, _Status.UNAUTHENTICATED):
            return EngineUnavailable(f"the metadata engine {self.name} cannot serve: {text}")
        return Unreachable(f"the metadata engine {self.name} cannot be reached: {text or code}")


class _EtcdSnapshot:
    """A revision of the store, that of the first read."""

    def __init__(self, backend: EtcdBackend) -> None:
        self._backend = backend
        self._prefix = backend.prefix
        #: 0: not known yet.
        self._revision = 0
        #: Of keys without our prefix; 0: the key is not there.
        self._mod_revisions: dict[bytes, int] = {}

    async def fetch(self, reads: Reads, cache: SnapshotCache) -> None:
        asked: list[bytes | RangeRead] = [*reads.keys, *reads.ranges]
        for first in range(0, len(asked), _OPERATION_COUNT_MAX):
            some = asked[first : first + _OPERATION_COUNT_MAX]
            answers = await self._ranges([self._request(read) for read in some])
            for read, answer in zip(some, answers, strict=True):
                rows = self._rows(answer)
                if isinstance(read, bytes):
                    cache.values[read] = rows[0][1] if rows else None
                    self._mod_revisions.setdefault(read, 0)
                else:
                    cache.rows[read] = await self._all_rows(read, rows, answer.more)

    async def finish(self) -> None:
        """Nothing was written, and all was read at one revision: that is where it happened."""

    async def commit(self, batch: Batch) -> None:
        if not self._revision:
            # Find a member that answers first: of a commit that failed, nobody knows.
            await self._ranges([etcd_pb2.EtcdRangeRequest(key=self._prefix)])
        request = etcd_pb2.EtcdTransactionRequest(
            compare=self._comparisons(batch), success=self._operations(batch)
        )
        reach(Phase.ENGINE_COMMITTING)
        try:
            answer = await self._backend.call(
                "/etcdserverpb.KV/Txn", request, etcd_pb2.EtcdTransactionResponse, _COMMIT_S
            )
        except grpc.aio.AioRpcError as error:
            translated = self._backend.translated(error)
            if isinstance(translated, Unreachable) and not _is_surely_refused(error):
                raise CommitUnknown(
                    f"the answer of {self._backend.name} to a commit was lost: {error.details()}"
                ) from error
            raise translated from error
        if not answer.succeeded:
            raise Conflict("what was read has changed")
        reach(Phase.ENGINE_COMMITTED)
        self._backend.compaction.committed(answer.header.revision)

    def _request(self, read: bytes | RangeRead) -> etcd_pb2.EtcdRangeRequest:
        if isinstance(read, bytes):
            return etcd_pb2.EtcdRangeRequest(key=self._prefix + read)
        # Descending, etcd collects the whole range before it cuts: correct, not quick.
        return etcd_pb2.EtcdRangeRequest(
            key=self._prefix + read.begin,
            range_end=self._prefix + read.end,
            limit=min(read.limit or _PAGE_COUNT, _PAGE_COUNT),
            sort_order=(
                etcd_pb2.ETCD_SORT_ORDER_DESCEND if read.reverse else etcd_pb2.ETCD_SORT_ORDER_NONE
            ),
            keys_only=read.keys_only,
        )

    async def _all_rows(
        self, read: RangeRead, rows: list[tuple[bytes, bytes]], more: bool
    ) -> list[tuple[bytes, bytes]]:
        """The rows of a scan, page after page."""
        while more and (read.limit is None or len(rows) < read.limit):
            last = rows[-1][0]
            rest = RangeRead(
                begin=read.begin if read.reverse else last + b"\x00",
                end=last if read.reverse else read.end,
                limit=None if read.limit is None else read.limit - len(rows),
                reverse=read.reverse,
                keys_only=read.keys_only,
            )
            (answer,) = await self._ranges([self._request(rest)])
            rows += self._rows(answer)
            more = answer.more
        return rows

    def _rows(self, answer: etcd_pb2.EtcdRangeResponse) -> list[tuple[bytes, bytes]]:
        skipped = len(self._prefix)
        rows: list[tuple[bytes, bytes]] = []
        for pair in answer.kvs:
            key = pair.key[skipped:]
            rows.append((key, pair.value))
            self._mod_revisions[key] = pair.mod_revision
        return rows

    async def _ranges(
        self, requests: Iterable[etcd_pb2.EtcdRangeRequest]
    ) -> list[etcd_pb2.EtcdRangeResponse]:
        """Read at the revision of this snapshot, which the first call finds."""
        operations: list[etcd_pb2.EtcdOperation] = []
        for request in requests:
            request.revision = self._revision
            operations.append(etcd_pb2.EtcdOperation(range=request))
        try:
            answer = await self._backend.call(
                "/etcdserverpb.KV/Txn",
                etcd_pb2.EtcdTransactionRequest(success=operations),
                etcd_pb2.EtcdTransactionResponse,
                _READ_S,
            )
        except grpc.aio.AioRpcError as error:
            raise self._backend.translated(error) from error
        self._revision = self._revision or answer.header.revision
        return [outcome.range for outcome in answer.responses]

    def _comparisons(self, batch: Batch) -> list[etcd_pb2.EtcdCompare]:
        compared = [
            etcd_pb2.EtcdCompare(
                result=etcd_pb2.ETCD_COMPARE_RESULT_EQUAL,
                target=etcd_pb2.ETCD_COMPARE_TARGET_MOD,
                key=self._prefix + key,
                mod_revision=self._mod_revisions[key],
            )
            for key in batch.read_keys
        ]
        for read in batch.read_ranges:
            begin, end = read.covered(batch.cache.rows[read])
            compared.append(
                etcd_pb2.EtcdCompare(
                    result=etcd_pb2.ETCD_COMPARE_RESULT_LESS,
                    target=etcd_pb2.ETCD_COMPARE_TARGET_MOD,
                    key=self._prefix + begin,
                    range_end=self._prefix + end,
                    mod_revision=self._revision + 1,
                )
            )
        return compared

    def _operations(self, batch: Batch) -> list[etcd_pb2.EtcdOperation]:
        return [
            etcd_pb2.EtcdOperation(delete=etcd_pb2.EtcdDeleteRequest(key=self._prefix + key))
            if value is None
            else etcd_pb2.EtcdOperation(
                put=etcd_pb2.EtcdPutRequest(key=self._prefix + key, value=value)
            )
            for key, value in batch.writes.items()
        ]


class _Compaction:
    """Forgets old versions.

    Every server that commits does it now and then, up to a version that it knows to be older than
    any snapshot in use; doing it twice is harmless.
    """

    def __init__(self, backend: EtcdBackend, every_s: float) -> None:
        self._backend = backend
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        #: A revision of our own and the loop time at which it was the newest one.
        self._revision = 0
        self._at_s = 0.0

    def committed(self, revision: int) -> None:
        """A commit made this revision."""
        now_s = asyncio.get_running_loop().time()
        if self._revision and now_s < self._at_s + self._every_s:
            return
        if self._revision and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._compact(self._revision))
        self._revision, self._at_s = revision, now_s

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._task is not None:
            await self._task

    async def _compact(self, revision: int) -> None:
        try:
            await self._backend.call(
                "/etcdserverpb.KV/Compact",
                etcd_pb2.EtcdCompactRequest(revision=revision),
                etcd_pb2.EtcdCompactResponse,
                _COMMIT_S,
            )
        except grpc.aio.AioRpcError:
            return  # another server was quicker, or the member is away: there is a next time


def _is_surely_refused(error: grpc.aio.AioRpcError) -> bool:
    """Whether the member says that it did not even propose the commit to the others."""
    text = error.details() or ""
    return "no leader" in text or "too many requests" in text
