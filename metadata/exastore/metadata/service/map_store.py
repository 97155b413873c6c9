"""The cluster map in the engine and in memory.

Laws:
1. The stored epoch grows by one with every change, and only the one who read epoch e may write e+1.
2. What is in memory was stored. It may be older than what is stored when another server changed
   the map; whoever decides by it compares the head row inside the deciding transaction.
3. No value exceeds the engine's limit: the map is a head row and blocks of nodes, devices and PGs;
   a change writes the blocks that differ.
4. The first map of a large cluster does not fit a transaction. Its blocks are stored in several,
   and the head row last: until then there is no map. `first_map` has the rules.
5. Whoever knows one of the last `DELTA_COUNT` epochs that this server has seen gets deltas from it.

Rows: (M, head) holds epoch, cluster id and code; (M, nodes|devices|pgs, block) hold runs.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from exastore.erasure import Codec, codec
from exastore.metadata.core.map_delta import checksum, encode_delta, table_of
from exastore.metadata.core.pools import DEFAULT_POOL
from exastore.metadata.core.redundancy import log_code
from exastore.metadata.core.topology import ClusterMap, PlacementRule
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.namespace.objects import Fence
from exastore.metadata.service.convert import columns_of
from exastore.metadata.service.errors import MapOutdated, NotReady, StaleEpoch, WrongPool
from exastore.metadata.service.first_map import FirstMap
from exastore.proto.v1 import common_pb2

HEAD_KEY = pack("M", "head")
_NODES_PER_ROW = 128
_DEVICES_PER_ROW = 256
_PG_ROW_BYTES = 32 * 1024
#: Rows that one change of slots may touch: a transaction of the engine holds no more.
_PG_ROWS_PER_CHANGE = 24
#: Deltas kept in memory: a node that was away for less gets no full map.
DELTA_COUNT = 256

Edit = Callable[[common_pb2.ClusterMap | None], common_pb2.ClusterMap | None]
Guard = Callable[[Transaction], None]


def map_rows(message: common_pb2.ClusterMap) -> dict[bytes, bytes]:
    """The rows that store a map."""
    head = common_pb2.ClusterMap(
        epoch=message.epoch, cluster_id=message.cluster_id, code=message.code, pools=message.pools
    )
    rows = {HEAD_KEY: head.SerializeToString()}
    pgs_per_row = _pgs_per_row(message)
    for first in range(0, len(message.nodes), _NODES_PER_ROW):
        run = common_pb2.ClusterMap(nodes=message.nodes[first : first + _NODES_PER_ROW])
        rows[pack("M", "nodes", first // _NODES_PER_ROW)] = run.SerializeToString()
    for first in range(0, len(message.devices), _DEVICES_PER_ROW):
        run = common_pb2.ClusterMap(devices=message.devices[first : first + _DEVICES_PER_ROW])
        rows[pack("M", "devices", first // _DEVICES_PER_ROW)] = run.SerializeToString()
    for first in range(0, len(message.pgs), pgs_per_row):
        run = common_pb2.ClusterMap(pgs=message.pgs[first : first + pgs_per_row])
        rows[pack("M", "pgs", first // pgs_per_row)] = run.SerializeToString()
    return rows


def pg_ranges(message: common_pb2.ClusterMap) -> dict[str, range]:
    """The groups of each pool; empty: the map names none."""
    return {
        pool.name: range(pool.first_pg, pool.first_pg + pool.pg_count) for pool in message.pools
    }


def _pgs_per_row(message: common_pb2.ClusterMap) -> int:
    n = len(message.pgs[0].device_indexes) if message.pgs else 1
    return max(1, _PG_ROW_BYTES // (7 * n + 24))


def read_rows(txn: Transaction) -> dict[bytes, bytes]:
    """The stored rows of the map; empty when there is none."""
    return dict(txn.scan(*prefix_range(pack("M"))))


def map_of_rows(rows: dict[bytes, bytes]) -> common_pb2.ClusterMap:
    """The map that `map_rows` cut up."""
    message = common_pb2.ClusterMap()
    for key in sorted(rows):
        message.MergeFromString(rows[key])
    return message


def map_delta(
    old: common_pb2.ClusterMap,
    old_columns: ClusterMap,
    new: common_pb2.ClusterMap,
    new_columns: ClusterMap,
) -> common_pb2.MapDelta:
    """The delta between two maps, given as messages and as columns."""
    table = table_of(new_columns)
    delta = common_pb2.MapDelta(
        from_epoch=old.epoch,
        epoch=new.epoch,
        columns=encode_delta(table_of(old_columns), table),
        checksum=checksum(table),
    )
    for node in new.nodes:
        if node.index >= len(old.nodes) or node != old.nodes[node.index]:
            delta.nodes.append(node)
    for device in new.devices:
        known = old.devices[device.index] if device.index < len(old.devices) else None
        if known is None or (known.uuid, known.node_index, known.capacity_bytes) != (
            device.uuid,
            device.node_index,
            device.capacity_bytes,
        ):
            delta.devices.append(device)
    return delta


class MapStore:
    """The current map, and the only way to change it."""

    def __init__(self, engine: Engine, rule: PlacementRule) -> None:
        self._engine = engine
        self._rule = rule
        self._forming = FirstMap(engine, HEAD_KEY)
        #: Told the next epoch before a change is stored; fences engines that do not hold the map.
        self.before_change: Callable[[int], Awaitable[None]] | None = None
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        #: `_rows` are the rows of `_message`, and `_columns` its columns; all empty: no map yet.
        self._rows: dict[bytes, bytes] = {}
        self._message: common_pb2.ClusterMap | None = None
        self._columns: ClusterMap | None = None
        self._pg_epochs: list[int] = []
        #: The groups of each pool; empty: the map names none.
        self._pools: dict[str, range] = {}
        #: About the size of the message.
        self._full_bytes = 0
        #: Each begins at the epoch at which the one before it ends; the last ends at `epoch`.
        self._deltas: deque[common_pb2.MapDelta] = deque(maxlen=DELTA_COUNT)

    @property
    def message(self) -> common_pb2.ClusterMap | None:
        """The map; to be treated as read-only. None: there is none yet."""
        return self._message

    @property
    def columns(self) -> ClusterMap | None:
        """The map as the core's columns."""
        return self._columns

    @property
    def epoch(self) -> int:
        """The map's epoch; 0: no map."""
        return 0 if self._message is None else self._message.epoch

    @property
    def pool_names(self) -> list[str]:
        """Names of the pools of the map; the default one alone if it names none."""
        return list(self._pools) or [DEFAULT_POOL]

    async def load(self) -> None:
        """Read the stored map if it is newer."""
        async with self._lock:
            await self._load()

    async def change(
        self, edit: Edit, *, guard: Guard = lambda _: None
    ) -> common_pb2.ClusterMap | None:
        """Replace the map by `edit(map)` with the next epoch; `edit` returns None for no change.

        `edit` runs again when another server changed the map meanwhile; `guard` runs inside the
        transaction and may refuse by raising.

        Returns:
            The map that is current now.
        """
        async with self._lock:
            while True:
                new = edit(self._message)
                if new is None:
                    return self._message
                assert new.epoch == self.epoch + 1, "an edit makes the next epoch"
                rows = map_rows(new)
                if self.before_change is not None:
                    await self.before_change(new.epoch)
                if await self._store(rows, guard):
                    self._install(rows, new)
                    return new
                await self._load()

    def end_of_change(self, pgs: Iterable[int]) -> int:
        """How many of these PGs, from the first, one change may touch; at least one if any.

        There must be a map.
        """
        assert self._message is not None
        pgs_per_row = _pgs_per_row(self._message)
        rows: set[int] = set()
        count = 0
        for pg in pgs:
            rows.add(pg // pgs_per_row)
            if len(rows) > _PG_ROWS_PER_CHANGE:
                break
            count += 1
        return count

    def update_from(self, known_epoch: int, *, takes_deltas: bool) -> common_pb2.ClusterMap:
        """What brings a receiver from the epoch it knows to ours: deltas if possible and smaller.

        There must be a map.
        """
        message = self._message
        assert message is not None
        deltas: list[common_pb2.MapDelta] = []
        if takes_deltas and known_epoch:
            deltas = [delta for delta in self._deltas if delta.from_epoch >= known_epoch]
        if not deltas or deltas[0].from_epoch != known_epoch:
            return message
        update = common_pb2.ClusterMap(
            epoch=message.epoch, cluster_id=message.cluster_id, code=message.code, deltas=deltas
        )
        return update if update.ByteSize() < self._full_bytes else message

    async def wait_newer(self, known_epoch: int) -> common_pb2.ClusterMap:
        """The map, once its epoch is above `known_epoch`."""
        while self._message is None or self._message.epoch <= known_epoch:
            await self._changed.wait()
        return self._message

    def fence(self, is_current: Callable[[Transaction], bool] | None = None) -> Fence:
        """A check, for use inside a transaction, that extents may be committed.

        Args:
            is_current: Whether the cached map is the newest, in an engine that does not hold it.

        It raises MapOutdated when the cached map is not the stored one, StaleEpoch, NotReady,
        InvalidArgument, WrongPool.
        """
        message, head, pg_epochs = self._message, self._rows.get(HEAD_KEY), self._pg_epochs
        code = None if message is None else codec(message.code)

        def is_head_current(txn: Transaction) -> bool:
            return txn.get(HEAD_KEY) == head

        is_newest = is_current or is_head_current

        pools = self._pools

        def check(txn: Transaction, extents: Iterable[common_pb2.Extent], pool: str) -> None:
            is_checked = False
            for extent in extents:
                if not is_checked and not is_newest(txn):
                    raise MapOutdated("the cached map is not the stored one")
                is_checked = True
                if message is None or code is None:
                    raise NotReady(
                        "there is no cluster map yet, so no extent can have been written"
                    )
                _check_extent(extent, message.epoch, code, pg_epochs)
                if pools and extent.pg not in pools.get(pool or DEFAULT_POOL, ()):
                    raise WrongPool(extent.pg, pool or DEFAULT_POOL)

        return check

    async def _load(self) -> None:
        head = self._rows.get(HEAD_KEY)

        def read(txn: Transaction) -> dict[bytes, bytes]:
            return {} if txn.get(HEAD_KEY) == head else read_rows(txn)

        rows = await self._engine.read(read)
        if rows:
            self._install(rows, map_of_rows(rows))

    async def _store(self, rows: dict[bytes, bytes], guard: Guard) -> bool:
        """Store the next map; false: another server was faster."""
        if self._message is None and await self._forming.is_needed(rows):
            return await self._forming.store(rows, guard)
        return await self._engine.transact(self._replacement(rows, guard))

    def _replacement(self, rows: dict[bytes, bytes], guard: Guard) -> Callable[[Transaction], bool]:
        known = self._rows

        def replace(txn: Transaction) -> bool:
            if txn.get(HEAD_KEY) != known.get(HEAD_KEY):
                return False
            guard(txn)
            for key, value in rows.items():
                if known.get(key) != value:
                    txn.put(key, value)
            return True

        return replace

    def _install(self, rows: dict[bytes, bytes], message: common_pb2.ClusterMap) -> None:
        columns = columns_of(message, self._rule)
        if self._message is not None and self._columns is not None:
            self._deltas.append(map_delta(self._message, self._columns, message, columns))
        self._rows = rows
        self._message = message
        self._columns = columns
        self._full_bytes = sum(map(len, rows.values()))
        self._pg_epochs = [pg.epoch for pg in message.pgs]
        self._pools = pg_ranges(message)
        self._changed.set()
        self._changed = asyncio.Event()


def _check_extent(extent: common_pb2.Extent, epoch: int, code: Codec, pg_epochs: list[int]) -> None:
    if extent.pg >= len(pg_epochs):
        raise InvalidArgument(f"placement group {extent.pg} does not exist")
    if extent.epoch > epoch:
        raise InvalidArgument(f"an extent of epoch {extent.epoch}, but the map has epoch {epoch}")
    if pg_epochs[extent.pg] > extent.epoch:
        raise StaleEpoch(extent.pg, extent.epoch, pg_epochs[extent.pg])
    if extent.is_slice:
        raise InvalidArgument("slices of packed stripes are made by the cluster alone")
    if extent.is_log:
        code = log_code(code)
    if extent.code != code.name:
        raise InvalidArgument(f"an extent of code {extent.code}; the cluster's is {code.name}")
    if not extent.stripe_id or len(extent.chunk_crc32c) != code.n:
        raise InvalidArgument(f"an extent needs a stripe id and {code.n} checksums")
    if extent.data_bytes > code.k * extent.chunk_bytes:
        raise InvalidArgument("an extent holds more bytes than its data chunks")
    missing = set(extent.missing_indexes)
    if any(index >= code.n for index in missing) or not code.decodable(missing):
        raise InvalidArgument("an extent misses more chunks than its code can rebuild")
