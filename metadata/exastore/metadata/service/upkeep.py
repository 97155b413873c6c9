"""UpkeepService: a plain async class, one method per call, free of gRPC."""

from collections.abc import Awaitable, Callable

from exastore.metadata.core.clock import Clock
from exastore.metadata.namespace import packed
from exastore.metadata.service.errors import NotReady
from exastore.metadata.service.orphans import Collect
from exastore.metadata.service.packing import status_of
from exastore.metadata.service.partitions import Partitions
from exastore.proto.v1 import upkeep_pb2


class UpkeepService:
    """What operators ask about packing and orphans.

    Attributes:
        collect: Looks for orphans; set when background work begins, as are the others.
        pack_now: Packs what saves room.
    """

    def __init__(self, partitions: Partitions, clock: Clock) -> None:
        self._partitions = partitions
        self._clock = clock
        self.collect: Collect = _not_started
        self.pack_now: Callable[[], Awaitable[None]] = _not_started_packing

    async def get_packing(self, request: upkeep_pb2.GetPackingRequest) -> upkeep_pb2.PackingStatus:
        """Count what waits and what is packed; reads every row of either.

        Raises NotReady if it shall pack first and this server does not do the background work.
        """
        if request.pack_now:
            await self.pack_now()
        found = [await p.engine.read(packed.totals) for p in self._partitions.all]
        return status_of(found, self._clock.now_s())

    async def collect_orphans(
        self, request: upkeep_pb2.CollectOrphansRequest
    ) -> upkeep_pb2.OrphanReport:
        """Raises NotReady unless this server does the background work."""
        return await self.collect(request)


async def _not_started(request: upkeep_pb2.CollectOrphansRequest) -> upkeep_pb2.OrphanReport:
    raise NotReady("the server is starting")


async def _not_started_packing() -> None:
    raise NotReady("the server is starting")
