"""Commits what was stored, whatever becomes of the map meanwhile."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from exastore.gateway.bucket_pools import BucketPools
from exastore.gateway.config import GatewayConfig
from exastore.gateway.errors import RequestError, ServiceError, StaleEpoch
from exastore.gateway.map_cache import MapCache
from exastore.gateway.stripe_reader import StripeReader
from exastore.gateway.stripe_writer import StripeWriter
from exastore.gateway.writer import StoredBody
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, reach
from exastore.proto.v1 import common_pb2

Committed = TypeVar("Committed")

#: How often the extents of one commit are moved out of the way of a changing map.
MAX_COMMIT_COUNT = 4


class Committer:
    """Repeats commits whose stripes a map change has overtaken, and discards what is refused."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        maps: MapCache,
        pools: BucketPools,
        writer: StripeWriter,
        reader: StripeReader,
        clock: Clock,
    ) -> None:
        self._config = config
        self._maps = maps
        self._pools = pools
        self._writer = writer
        self._reader = reader
        self._clock = clock

    async def commit(
        self,
        bucket: str,
        stored: StoredBody,
        commit: Callable[[StoredBody], Awaitable[Committed]],
    ) -> Committed:
        """Commit what was stored; stripes that a map change has overtaken are written anew.

        So are those of a bucket that was deleted and made again in another pool meanwhile.
        """
        replaced: list[common_pb2.Extent] = []
        for attempt in range(MAX_COMMIT_COUNT):
            try:
                reach(Phase.COMMIT_SENDING)
                committed = await commit(stored)
                reach(Phase.COMMITTED)
            except RequestError:
                # Refused, so nothing will ever refer to these.
                self._writer.discard([*stored.extents, *replaced])
                raise
            except StaleEpoch:
                if attempt == MAX_COMMIT_COUNT - 1:
                    self._writer.discard([*stored.extents, *replaced])
                    raise
                stored = await self._rewritten(bucket, stored, replaced)
            else:
                self._writer.discard(replaced)
                return committed
        raise AssertionError("unreachable")

    async def _rewritten(
        self, bucket: str, stored: StoredBody, replaced: list[common_pb2.Extent]
    ) -> StoredBody:
        """The same bytes with stripes of the present map in place of overtaken ones."""
        view = await self._maps.refresh()
        if view is None:
            raise ServiceError("the cluster has no map any more")
        pool = await self._pools.of_bucket(bucket, is_known=False)
        extents: list[common_pb2.Extent] = []
        for extent in stored.extents:
            is_current = view.pg_epoch[extent.pg] <= extent.epoch
            if is_current and view.is_in_pool(extent.pg, pool):
                extents.append(extent)
                continue
            capacity = await self._writer.extent_capacity()
            buffer = np.empty(max(capacity, extent.data_bytes), dtype=np.uint8)
            await self._reader.read_into(extent, buffer)
            extents.append(
                await self._writer.write(buffer, extent.data_bytes, is_log=extent.is_log, pool=pool)
            )
            replaced.append(extent)
        if not replaced:
            # The server we ask has not seen the change that the commit ran into.
            await self._clock.sleep(self._config.backoff_min_s)
        return replace(stored, extents=extents)
