"""The background loops: each runs rounds, and only the holder of the lease acts in them.

Liveness and the start of rebuilds have a loop of their own that waits for no storage node, so that
a node that hangs delays nobody's declaration of death.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine
from exastore.metadata.kv.errors import EngineError
from exastore.metadata.service.cluster import BackgroundStatus
from exastore.metadata.service.collector import TrashCollector
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.core import MetadataService
from exastore.metadata.service.degraded import DegradedStripes
from exastore.metadata.service.errors import ServiceError
from exastore.metadata.service.healer import Healer
from exastore.metadata.service.leftovers import Leftovers
from exastore.metadata.service.lifecycle import Lifecycle
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.operations import Operations
from exastore.metadata.service.orphans import OrphanCollector
from exastore.metadata.service.packing import Packer, stripe_ids
from exastore.metadata.service.rebuild import Rebuilder
from exastore.metadata.service.repair import Repairer
from exastore.metadata.service.residency import BorderLog
from exastore.metadata.service.slot_mover import SlotMover
from exastore.metadata.service.storage_client import StorageClient, StorageError

log = logging.getLogger(__name__)

_SLOW_ROUND_S = 1.0


class Background:
    """Everything a metadata server does by itself.

    Attributes:
        repair: Rebuilds lost slots.
        slot_mover: Drains and balances devices.
        degraded: Completes stripes committed with chunks missing.
        trash: Deletes the chunks of deleted objects.
        packer: Packs small objects into shared stripes.
        orphans: Deletes the chunks that nothing refers to.
        healer: Scrubs, and rebuilds chunks that are rotten or missing.
        leftovers: Deletes the chunks of slots that devices have given up.
        lifecycle: Carries out lifecycle rules and forgets expired answers.
    """

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        service: MetadataService,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._config = config
        self._service = service
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        maps, lease = service.maps, service.lease
        partitions = service.names.partitions
        rebuilder = Rebuilder(config, engine, storage)
        rebuilder.engines = [partition.engine for partition in partitions.all]
        borders = BorderLog(service.audit)
        self.repair = Repairer(config, maps, lease, rebuilder, storage, clock, metrics, borders)
        self.slot_mover = SlotMover(
            config, engine, maps, lease, rebuilder, self.repair, storage, clock, metrics, borders
        )
        self.degraded = DegradedStripes(partitions, maps, rebuilder, metrics)
        self.trash = TrashCollector(config, partitions, maps, storage, clock, metrics)
        self.packer = Packer(
            config,
            partitions,
            maps,
            service.names.commit_on,
            storage,
            clock,
            metrics,
            stripe_ids(clock),
        )
        self.orphans = OrphanCollector(config, partitions, maps, storage, clock, metrics)
        service.upkeep.collect = self.orphans.collect
        service.upkeep.pack_now = self.packer.pack_now
        self.healer = Healer(config, engine, maps, lease, rebuilder, storage, clock, metrics)
        self.leftovers = Leftovers(engine, maps, lease, storage, metrics)
        self.lifecycle = Lifecycle(
            partitions, service.names.tenants, service.names.terms, clock, metrics
        )
        service.cluster.background_status = self._status
        service.cluster.add_moves = self.slot_mover.add_status
        operations = Operations(
            config, maps, service.cluster, service.budgets, self.repair, self.slot_mover, borders
        )
        service.cluster.carry_out = operations.operate
        self._tasks: list[asyncio.Task[None]] = []
        self._known_epoch = 0

    def start(self) -> None:
        """Begin the loops in the running event loop."""
        loop = asyncio.get_running_loop()
        slow_s = max(self._config.tick_s, _SLOW_ROUND_S)
        self._tasks = [
            loop.create_task(
                self._repeat("round", self.run_round, self._config.tick_s, self.repair.ended)
            ),
            loop.create_task(self._repeat("degraded", self.degraded.run_round, slow_s)),
            loop.create_task(self._repeat("trash", self.trash.run_round, slow_s)),
            loop.create_task(self._repeat("lifecycle", self.lifecycle.run_round, slow_s)),
            loop.create_task(self._repeat("moves", self._service.mover.run_round, slow_s)),
            loop.create_task(self._repeat("leftovers", self.leftovers.run_round, slow_s)),
            loop.create_task(self._repeat("packing", self.packer.run_round, slow_s)),
            loop.create_task(self._repeat("orphans", self.orphans.run_round, slow_s)),
            loop.create_task(self._repeat("heal", self.healer.repair_round, slow_s)),
            loop.create_task(self._repeat("scrub", self.healer.scrub_round, slow_s)),
        ]

    async def stop(self) -> None:
        """End the loops and give up the lease."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.repair.stop()
        await self.slot_mover.stop()
        try:
            await self._service.lease.release()
        except EngineError as error:
            log.warning("the background lease could not be released: %s", error)
        await self._storage.close()

    async def run_round(self) -> None:
        """Keep the lease, follow the map, declare the silent dead, move repair on."""
        service = self._service
        was_held = service.lease.is_held
        is_held = await service.lease.keep()
        self._metrics.lease(is_held)
        await service.maps.load()
        if is_held:
            await service.names.hold_partitions()
        if is_held and not was_held:
            await service.cluster.take_over()
        if service.maps.epoch != self._known_epoch:
            await service.cluster.load_intents()
        await service.budgets.run_round()
        await service.cluster.settle()
        await self.repair.run_round()
        await self.slot_mover.run_round()
        if service.maps.epoch != self._known_epoch:
            self._known_epoch = service.maps.epoch
            service.cluster.publish_metrics()

    def _status(self) -> BackgroundStatus:
        return BackgroundStatus(
            repair=self.repair.status(),
            degraded_stripe_count=self.degraded.stripe_count,
            trash_extent_count=self.trash.stats.extent_count,
        )

    async def _repeat(
        self,
        work: str,
        run_round: Callable[[], Awaitable[None]],
        pause_s: float,
        wake: asyncio.Event | None = None,
    ) -> None:
        while True:
            try:
                await run_round()
            except (EngineError, ServiceError, StorageError) as error:
                log.warning("background work failed (%s): %s", work, error)
                self._metrics.background_error(work)
            except Exception:
                log.exception("background work failed (%s)", work)
                self._metrics.background_error(work)
            if wake is None:
                await self._clock.sleep(pause_s)
            else:
                await self._sleep_until(pause_s, wake)

    async def _sleep_until(self, pause_s: float, wake: asyncio.Event) -> None:
        """Sleep for `pause_s` seconds, or until `wake` is set."""
        loop = asyncio.get_running_loop()
        waits: list[asyncio.Task[Any]] = [
            loop.create_task(self._clock.sleep(pause_s)),
            loop.create_task(wake.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        wake.clear()
