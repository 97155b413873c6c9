"""MetadataService: a plain async class, one method per call, free of gRPC."""

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine
from exastore.metadata.service.audit import AuditLog
from exastore.metadata.service.budgets import Budgets
from exastore.metadata.service.cluster import ClusterService
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.documents import DocumentService
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.mover import Mover
from exastore.metadata.service.names import NamespaceService
from exastore.metadata.service.upkeep import UpkeepService
from exastore.metadata.service.users import AccessService


class MetadataService:
    """The two halves of the service over one engine and one map.

    Attributes:
        maps: The cluster map.
        lease: The background lease.
        budgets: What repair and moves may use.
        cluster: Calls about the map, nodes and devices.
        names: Calls about buckets, objects and uploads.
        upkeep: Calls about packing and orphans.
        documents: Calls about documents of buckets.
        mover: Calls about moves of buckets between partitions.
        audit: The log of administrative acts.
        access: Calls about users and traffic.
    """

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        *,
        holder: str,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self.maps = MapStore(engine, config.rule)
        self.lease = Lease(engine, holder, config.lease_s, clock)
        self.cluster = ClusterService(config, engine, self.maps, self.lease, clock, metrics)
        self.budgets = Budgets(config, engine, self.maps, self.lease, clock, metrics)
        self.cluster.grant = self.budgets.grant
        self.names = NamespaceService(config, engine, self.maps, clock, self.lease)
        self.upkeep = UpkeepService(self.names.partitions, clock)
        self.documents = DocumentService(self.names.partitions)
        self.mover = Mover(self.names.partitions, clock, self.names.tenants.switching)
        self.audit = AuditLog(config.audit_file, clock)
        self.access = AccessService(engine, clock, self.audit)

    async def start(self) -> None:
        """Load what is stored. Raises WrongCluster, EngineError."""
        await self.cluster.start()
        await self.names.start()

    async def close(self) -> None:
        """Close what this opened: the engines of further partitions."""
        await self.names.close()
