"""The gateway process: S3 in front, the cluster behind."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from exastore.gateway.cluster_store import ClusterStore, open_cluster_store
from exastore.gateway.config import GatewayConfig
from exastore.gateway.inventory.job import InventoryJob
from exastore.gateway.master_key import read_master_key
from exastore.gateway.s3.service import S3Service
from exastore.gateway.traffic import TrafficMeter
from exastore.gateway.users import Users, recorder
from exastore.metadata.core.clock import Clock


class Gateway:
    """Start it once, stop it once. It keeps no state: run as many as you like."""

    def __init__(self, config: GatewayConfig, *, clock: Clock, registry: CollectorRegistry) -> None:
        self._config = config
        self._clock = clock
        self._registry = registry
        #: All are None until started and again once stopped.
        self._store: ClusterStore | None = None
        self._service: S3Service | None = None
        self._meter: TrafficMeter | None = None
        self._job: InventoryJob | None = None

    async def start(self) -> str:
        """Serve; returns host:port. Does not wait for the cluster: until it serves, S3 says 503.

        Raises:
            AddressInUse: When another process listens at the address.
            ValueError: When the configuration lacks what a gateway needs.
            MasterKeyError: The file of the master key cannot be used.
        """
        assert self._store is None, "started already"
        if not self._config.metadata:
            raise ValueError("the gateway needs the address of a metadata server")
        master_key = None
        if self._config.master_key_file:
            master_key = read_master_key(Path(self._config.master_key_file))
        store = await open_cluster_store(self._config, clock=self._clock, registry=self._registry)
        try:
            users = None if master_key is None else Users(store.metadata, master_key)
            meter = TrafficMeter(
                lambda batch: store.metadata.call_access(lambda stub: stub.AddTraffic, batch),
                clock=self._clock,
                flush_s=self._config.traffic_flush_s,
            )
            service = S3Service(
                store,
                self._config,
                clock=self._clock,
                registry=self._registry,
                look_up=None if users is None else users.look_up,
                count_traffic=meter.count,
                record_act=recorder(store.metadata),
                master_key=master_key,
            )
            job = None
            if self._config.inventory_day_s:
                job = InventoryJob(
                    store,
                    clock=self._clock,
                    day_s=self._config.inventory_day_s,
                    master_key=master_key,
                )
            address = await service.start()
            meter.start()
            if job is not None:
                job.start()
        except BaseException:
            await store.close()
            raise
        self._store, self._service, self._meter, self._job = store, service, meter, job
        return address

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no more requests, let those under way end for `grace_s` seconds, then let go."""
        if self._job is not None:
            await self._job.stop()
        if self._service is not None:
            await self._service.stop(grace_s)
        if self._meter is not None:
            await self._meter.stop()
        if self._store is not None:
            await self._store.close()
        self._store = self._service = self._meter = self._job = None
