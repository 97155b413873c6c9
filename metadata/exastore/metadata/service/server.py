"""MetadataServer: the process's object. Opens the engine, binds the port, runs background work."""

import asyncio
import logging
import os
from collections.abc import Callable

import grpc
from prometheus_client import CollectorRegistry

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine
from exastore.metadata.kv.open import open_engine
from exastore.metadata.service.background import Background
from exastore.metadata.service.batches import BatchServicer
from exastore.metadata.service.budgeting import BudgetServicer
from exastore.metadata.service.call_port import call_port
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.core import MetadataService
from exastore.metadata.service.errors import AddressInUse
from exastore.metadata.service.healing import HealingServicer
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.servicer import add_to_server
from exastore.metadata.service.storage_client import GrpcStorageClient, StorageClient
from exastore.metadata.service.warm_up import warm_up
from exastore.proto.bulk_port import BulkPort
from exastore.proto.channel import METADATA_MESSAGE_BYTES, server_options
from exastore.proto.v1.bulk_pb2_grpc import add_BulkServiceServicer_to_server

log = logging.getLogger(__name__)


class MetadataServer:
    """One metadata server.

    Args:
        config: What it is told.
        clock: Its time.
        registry: Takes its metrics.
        storage: How it reaches storage nodes; by default over gRPC.
        new_id: Makes the server's identity as holder of the background lease.
    """

    def __init__(
        self,
        config: MetadataConfig,
        *,
        clock: Clock,
        registry: CollectorRegistry,
        storage: StorageClient | None = None,
        new_id: Callable[[], bytes] = lambda: os.urandom(8),
    ) -> None:
        self._config = config
        self._clock = clock
        self._metrics = MetadataMetrics(registry)
        self._storage = storage
        self._new_id = new_id
        self._engine: Engine | None = None
        self._service: MetadataService | None = None
        self._server: grpc.aio.Server | None = None
        self._bulk: BulkPort | None = None
        self._background: Background | None = None

    async def start(self) -> str:
        """Serve; the address as host:port.

        Raises AddressInUse, EngineError (cannot open), WrongCluster.
        """
        self._engine = open_engine(self._config.engine)
        try:
            service = self._service = MetadataService(
                self._config,
                self._engine,
                holder=self._new_id().hex(),
                clock=self._clock,
                metrics=self._metrics,
            )
            await service.start()
            # Compiling starves the event loop: before the first heartbeat, not after it.
            await asyncio.to_thread(warm_up, self._config)
            self._server = grpc.aio.server(options=server_options(METADATA_MESSAGE_BYTES))
            batches = add_to_server(service, self._metrics, self._clock, self._server)
            if self._config.bulk_port >= 0:
                self._bulk = self._opened_port(batches, self._server)
            BudgetServicer(service.budgets).add_to_server(self._server)
            healing = HealingServicer()
            healing.add_to_server(self._server)
            port = self._bind(self._server)
            await self._server.start()
        except BaseException:
            await self.stop(0.0)
            raise
        storage = self._storage if self._storage is not None else GrpcStorageClient()
        self._background = Background(
            self._config, self._engine, service, storage, self._clock, self._metrics
        )
        healing.healer = self._background.healer
        self._background.start()
        return f"{self._config.address.rpartition(':')[0]}:{port}"

    async def stop(self, grace_s: float = 5.0) -> None:
        """Finish what is in flight, for at most `grace_s` seconds; again is harmless."""
        if self._background is not None:
            await self._background.stop()
            self._background = None
        bulk, server, self._bulk, self._server = self._bulk, self._server, None, None
        await asyncio.gather(
            *([] if bulk is None else [bulk.stop(grace_s)]),
            *([] if server is None else [server.stop(grace_s)]),
        )
        if self._service is not None:
            await self._service.close()
            self._service = None
        if self._engine is not None:
            await self._engine.close()
            self._engine = None

    def _opened_port(self, batches: BatchServicer, server: grpc.aio.Server) -> BulkPort:
        """The port for calls without gRPC. Raises AddressInUse."""
        port = call_port(batches.outcome, self._metrics)
        host, number = self._config.address.rpartition(":")[0], self._config.bulk_port
        try:
            port.start(host, number)
        except OSError as error:
            raise AddressInUse(f"{host}:{number}") from error
        add_BulkServiceServicer_to_server(port, server)
        return port

    def _bind(self, server: grpc.aio.Server) -> int:
        try:
            port = server.add_insecure_port(self._config.address)
        except RuntimeError as error:
            raise AddressInUse(self._config.address) from error
        if port == 0:
            raise AddressInUse(self._config.address)
        return port
