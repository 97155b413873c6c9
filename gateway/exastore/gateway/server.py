"""The gateway process: S3 in front, the cluster behind."""

from prometheus_client import CollectorRegistry

from exastore.gateway.cluster_store import ClusterStore, open_cluster_store
from exastore.gateway.config import GatewayConfig
from exastore.gateway.s3.service import S3Service
from exastore.metadata.core.clock import Clock


class Gateway:
    """Start it once, stop it once. It keeps no state: run as many as you like."""

    def __init__(self, config: GatewayConfig, *, clock: Clock, registry: CollectorRegistry) -> None:
        self._config = config
        self._clock = clock
        self._registry = registry
        #: Both are None until started and again once stopped.
        self._store: ClusterStore | None = None
        self._service: S3Service | None = None

    async def start(self) -> str:
        """Serve; returns host:port. Does not wait for the cluster: until it serves, S3 says 503.

        Raises:
            AddressInUse: When another process listens at the address.
            ValueError: When the configuration lacks what a gateway needs.
        """
        assert self._store is None, "started already"
        if not self._config.metadata:
            raise ValueError("the gateway needs the address of a metadata server")
        store = await open_cluster_store(self._config, clock=self._clock, registry=self._registry)
        try:
            service = S3Service(store, self._config, clock=self._clock, registry=self._registry)
            address = await service.start()
        except BaseException:
            await store.close()
            raise
        self._store, self._service = store, service
        return address

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no more requests, let those under way end for `grace_s` seconds, then let go."""
        if self._service is not None:
            await self._service.stop(grace_s)
        if self._store is not None:
            await self._store.close()
        self._store = self._service = None
