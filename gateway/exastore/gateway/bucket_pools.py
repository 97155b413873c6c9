"""Which pool the data of a bucket lies in."""

from exastore.gateway.errors import RequestError
from exastore.gateway.map_cache import MapCache
from exastore.gateway.metadata_client import MetadataClient

#: Buckets whose pool is remembered.
MAX_POOL_NAMES = 10_000


class BucketPools:
    """The pools of buckets, looked up once."""

    def __init__(self, metadata: MetadataClient, maps: MapCache, region: str) -> None:
        """Args:
        region: The location that means any pool.
        """
        self._metadata = metadata
        self._maps = maps
        self._region = region
        #: The pool of each bucket, as it was when we last looked; of clusters with pools.
        self._pools: dict[str, str] = {}

    async def at_location(self, location: str) -> str:
        """The pool of a location; empty: the server chooses."""
        if not location or location == self._region:
            return ""
        pools = (await self._maps.view()).pools
        if pools and location not in pools:
            raise RequestError(
                "InvalidLocationConstraint",
                f"There is no pool {location}; there are {', '.join(pools)}.",
            )
        return location if pools else ""

    async def of_bucket(self, bucket: str, *, is_known: bool = True) -> str:
        """The pool of a bucket. It never changes; a new bucket of the name may have another."""
        if not (await self._maps.view()).pools:
            return ""
        pool = self._pools.get(bucket) if is_known else None
        if pool is None:
            pool = (await self._metadata.get_bucket(bucket)).pool
            if len(self._pools) >= MAX_POOL_NAMES:
                self._pools.clear()
            self._pools[bucket] = pool
        return pool
