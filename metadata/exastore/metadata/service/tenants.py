"""Quotas of tenants over all partitions.

With one engine a tenant's quota is exact: its counters and its quota are rows of that engine. With
several, each engine holds as the tenant's quota what the others have left of it: a fair share of
what is free beside what is used there. `level`, part of the background work, gives each engine its
share again when use has shifted, so the sum of the shares never exceeds the quota.
"""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range, unpack
from exastore.metadata.namespace import rows, usage
from exastore.metadata.service.partitions import Partitions
from exastore.proto.v1 import metadata_pb2

Quota = metadata_pb2.Quota
Usage = metadata_pb2.Usage

#: Shares smaller than this part of the quota are not worth a change.
_STEP = 64


class Tenants:
    """Usage and quotas of tenants."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions

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

        def put(txn: Transaction) -> None:
            known = _find_total(txn, tenant)
            stored = Quota(max_bytes=quota.max_bytes, max_objects=quota.max_objects)
            stored.revision = 1 if known is None else known.revision + 1
            txn.put(rows.total_quota(tenant), stored.SerializeToString())

        await self._partitions.first.transact(put)
        await self._level(tenant, quota, always=True)

    async def level(self) -> None:
        """Give each engine its share of every tenant's quota."""
        if len(self._partitions.all) > 1:
            for tenant, quota in await self._partitions.first.read(_totals):
                await self._level(tenant, quota, always=False)

    async def _usages(self, tenant: str) -> list[Usage]:
        return [
            await partition.engine.read(lambda txn: usage.tenant_usage(txn, tenant))
            for partition in self._partitions.all
        ]

    async def _level(self, tenant: str, quota: Quota, *, always: bool) -> None:
        usages = await self._usages(tenant)
        used_bytes = [used.object_bytes + used.part_bytes for used in usages]
        byte_shares = _shares(quota.max_bytes, used_bytes)
        object_shares = _shares(quota.max_objects, [used.object_count for used in usages])
        shares = [
            Quota(max_bytes=max_bytes, max_objects=max_objects)
            for max_bytes, max_objects in zip(byte_shares, object_shares, strict=True)
        ]
        changes = [
            (partition.engine, used.quota, share)
            for partition, used, share in zip(self._partitions.all, usages, shares, strict=True)
            if always or _differs(used.quota, share, quota)
        ]
        # Shares that shrink first: the sum must not exceed the quota in between.
        changes.sort(key=lambda change: change[2].max_bytes - change[1].max_bytes)
        for engine, _, share in changes:
            await engine.transact(
                lambda txn, share=share: usage.set_tenant_quota(txn, tenant, share)  # type: ignore[misc]
            )


def _shares(limit: int, used: list[int]) -> list[int]:
    """What each engine may hold; 0: no limit. At least 1, which holds nothing but is a limit."""
    if not limit:
        return [0] * len(used)
    spare = max(0, limit - sum(used)) // len(used)
    return [max(1, number + spare) for number in used]


def _differs(known: Quota, share: Quota, quota: Quota) -> bool:
    return (
        abs(known.max_bytes - share.max_bytes) > quota.max_bytes // _STEP
        or abs(known.max_objects - share.max_objects) > quota.max_objects // _STEP
    )


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
