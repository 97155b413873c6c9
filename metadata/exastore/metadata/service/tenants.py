"""Quotas of tenants over all partitions.

With one engine a tenant's quota is exact: its counters and its quota are rows of that engine. With
several, each engine holds a share of it: what is used there, and a fair part of what is free.

Laws:
1. The shares add up to at most the quota, but for 1 byte and 1 object of each further engine, as a
   share of nothing is written as 1 (0 is no limit). So a tenant that was within its quota exceeds
   it by at most that.
2. Shares shrink first, each in a transaction that sees what is used by then, and never raises it;
   anybody may do that. What is free then is given out by the holder of the lease alone, under the
   revision of the quota: an engine that has heard of a newer quota takes nothing.
3. A bucket that moves takes what it uses of the share along. Nothing is given out while one is
   between two engines.
"""

import asyncio

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range, unpack
from exastore.metadata.namespace import moving, rows, usage
from exastore.metadata.namespace.usage import SHARE_BITS
from exastore.metadata.service.partitions import Partition, Partitions
from exastore.proto.v1 import metadata_pb2

Quota = metadata_pb2.Quota
Usage = metadata_pb2.Usage

#: Shares smaller than this part of the quota are not worth a change.
_STEP = 64
#: Rounds of taking back after a quota was set, while writers go on.
_ROUND_COUNT = 4


class Tenants:
    """Usage and quotas of tenants."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        #: Held while a bucket is between two engines, and while shares grow.
        self.switching = asyncio.Lock()

    async def usage(self, tenant: str) -> Usage:
        """What the tenant uses in all partitions, and its quota."""
        total = Usage()
        for used in await self._usages(tenant):
            for field in Usage.DESCRIPTOR.fields:
                if field.name != "quota":
                    value = getattr(total, field.name) + getattr(used, field.name)
                    setattr(total, field.name, value)
        quota = await self._partitions.first.read(lambda txn: _find_total(txn, tenant))
        if quota is not None:
            total.quota.CopyFrom(quota)
        return total

    async def set_quota(self, tenant: str, quota: Quota) -> None:
        """Limit what the tenant may use; zeros take the limit away."""

        def put(txn: Transaction) -> Quota:
            known = _find_total(txn, tenant)
            stored = Quota(max_bytes=quota.max_bytes, max_objects=quota.max_objects)
            stored.revision = 1 if known is None else known.revision + 1
            txn.put(rows.total_quota(tenant), stored.SerializeToString())
            return stored

        stored = await self._partitions.first.transact(put)
        for _ in range(_ROUND_COUNT):
            if await self._shrink(tenant, stored, always=True):
                break
        if self._partitions.all[0].lease.is_held:
            await self._grow(tenant, stored)

    async def level(self) -> None:
        """Give each engine its share of every tenant's quota, as holder of the lease."""
        for tenant, quota in await self._partitions.first.read(_totals):
            await self._shrink(tenant, quota, always=False)
            await self._grow(tenant, quota)

    async def _usages(self, tenant: str) -> list[Usage]:
        return [
            await partition.engine.read(lambda txn: usage.tenant_usage(txn, tenant))
            for partition in self._partitions.all
        ]

    async def _shrink(self, tenant: str, quota: Quota, *, always: bool) -> bool:
        """Take back what engines have beyond their shares; whether all keep to the quota now."""
        usages = await self._usages(tenant)
        shares, is_over = _shares(quota, usages)
        for partition, used, share in zip(self._partitions.all, usages, shares, strict=True):
            is_new = used.quota.revision >> SHARE_BITS != quota.revision
            if always or is_new or _exceeds(used.quota, share, quota):
                await partition.engine.transact(
                    lambda txn, share=share: usage.shrink_share(  # type: ignore[misc]
                        txn, tenant, share, quota.revision, is_over=is_over
                    )
                )
        spare = len(self._partitions.all) - 1
        total_bytes, total_objects = _sums(await self._usages(tenant))
        return (not quota.max_bytes or total_bytes <= quota.max_bytes + spare) and (
            not quota.max_objects or total_objects <= quota.max_objects + spare
        )

    async def _grow(self, tenant: str, quota: Quota) -> None:
        """Give out what is free to the engines that have less than their shares."""
        async with self.switching:
            moves = await self._partitions.first.read(moving.list_moves)
            if any(move.phase == metadata_pb2.MOVE_PHASE_SWITCHING for move in moves):
                return
            usages = await self._usages(tenant)
            shares, _ = _shares(quota, usages)
            total_bytes, total_objects = _sums(usages)
            free_bytes = max(0, quota.max_bytes - total_bytes)
            free_objects = max(0, quota.max_objects - total_objects)
            for partition, used, share in zip(self._partitions.all, usages, shares, strict=True):
                more = Quota(
                    max_bytes=min(free_bytes, max(0, share.max_bytes - used.quota.max_bytes)),
                    max_objects=min(
                        free_objects, max(0, share.max_objects - used.quota.max_objects)
                    ),
                )
                if not (more.max_bytes or more.max_objects):
                    continue
                free_bytes -= more.max_bytes
                free_objects -= more.max_objects
                await self._give(partition, tenant, more, quota.revision)

    async def _give(
        self, partition: Partition, tenant: str, more: Quota, total_revision: int
    ) -> None:
        guard = partition.lease.guard()

        def give(txn: Transaction) -> None:
            guard(txn)
            usage.grow_share(txn, tenant, more, total_revision)

        await partition.engine.transact(give)


def _shares(quota: Quota, usages: list[Usage]) -> tuple[list[Quota], bool]:
    """What each engine should have, and whether more is used than the quota."""
    used_bytes = [used.object_bytes + used.part_bytes for used in usages]
    used_objects = [used.object_count for used in usages]
    is_over = bool(
        (quota.max_bytes and sum(used_bytes) > quota.max_bytes)
        or (quota.max_objects and sum(used_objects) > quota.max_objects)
    )
    byte_shares = _parts(quota.max_bytes, used_bytes)
    object_shares = _parts(quota.max_objects, used_objects)
    return [
        Quota(max_bytes=max_bytes, max_objects=max_objects)
        for max_bytes, max_objects in zip(byte_shares, object_shares, strict=True)
    ], is_over


def _parts(limit: int, used: list[int]) -> list[int]:
    """What each engine may hold; 0: no limit. At least 1, which is a limit."""
    if not limit:
        return [0] * len(used)
    total = sum(used)
    if total > limit:
        return [max(1, limit * number // total) for number in used]
    spare = (limit - total) // len(used)
    parts = [number + spare for number in used]
    parts[0] += limit - sum(parts)
    return [max(1, number) for number in parts]


def _exceeds(known: Quota, share: Quota, quota: Quota) -> bool:
    """Whether an engine has so much more than its share that it is worth a change."""
    return (
        known.max_bytes > share.max_bytes + quota.max_bytes // _STEP
        or known.max_objects > share.max_objects + quota.max_objects // _STEP
    )


def _sums(usages: list[Usage]) -> tuple[int, int]:
    """Bytes and objects of all shares."""
    shares = [used.quota for used in usages]
    return sum(q.max_bytes for q in shares), sum(q.max_objects for q in shares)


def _find_total(txn: Transaction, tenant: str) -> Quota | None:
    value = txn.get(rows.total_quota(tenant))
    return None if value is None else Quota.FromString(value)


def _totals(txn: Transaction) -> list[tuple[str, Quota]]:
    found: list[tuple[str, Quota]] = []
    for key, value in txn.scan(*prefix_range(pack("T"))):
        tenant = unpack(key)[1]
        assert isinstance(tenant, str)
        found.append((tenant, Quota.FromString(value)))
    return found
