"""The background loop: one round every `tick_s`, by the holder of the lease."""

import asyncio
import logging

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine
from exastore.metadata.kv.errors import EngineError
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.core import MetadataService
from exastore.metadata.service.errors import ServiceError
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.storage_client import StorageClient, StorageError

log = logging.getLogger(__name__)


class Background:
    """Runs until stopped."""

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
        self._engine = engine
        self._service = service
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None
        self._known_epoch = 0

    def start(self) -> None:
        """Begin rounds in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the rounds and give up the lease."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            await self._service.lease.release()
        except EngineError as error:
            log.warning("the background lease could not be released: %s", error)
        await self._storage.close()

    async def run_round(self) -> None:
        """One round."""
        service = self._service
        held = await service.lease.keep()
        self._metrics.lease(held)
        await service.maps.load()
        if service.maps.epoch != self._known_epoch:
            await service.cluster.load_intents()
        await service.cluster.settle()
        if service.maps.epoch != self._known_epoch:
            self._known_epoch = service.maps.epoch
            service.cluster.publish_metrics()

    async def _run(self) -> None:
        while True:
            try:
                await self.run_round()
            except (EngineError, ServiceError, StorageError) as error:
                log.warning("background work failed: %s", error)
                self._metrics.background_error("round")
            except Exception:
                log.exception("background work failed")
                self._metrics.background_error("round")
            await self._clock.sleep(self._config.tick_s)
