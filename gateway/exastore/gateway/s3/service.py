"""S3 as a service: the front, and the HTTP server that carries it."""

from prometheus_client import CollectorRegistry

from exastore.gateway.config import GatewayConfig
from exastore.gateway.master_key import MasterKey
from exastore.gateway.s3.front import CountTraffic, FrontOptions, S3Front, count_nothing
from exastore.gateway.s3.guard import RecordAct, record_nothing
from exastore.gateway.s3.http import HttpServer
from exastore.gateway.s3.identity import KeyCache, KeySource, LookUp, RootKey
from exastore.gateway.s3.metrics import S3Metrics
from exastore.gateway.store import ObjectStore
from exastore.metadata.core.clock import Clock


class S3Service:
    """Serves an object store over S3 at one address."""

    def __init__(
        self,
        store: ObjectStore,
        config: GatewayConfig,
        *,
        clock: Clock,
        registry: CollectorRegistry,
        look_up: LookUp | None = None,
        count_traffic: CountTraffic = count_nothing,
        record_act: RecordAct = record_nothing,
        master_key: MasterKey | None = None,
    ) -> None:
        """Args:
        look_up: Finds the keys of users; None: the administrator's is the only one.
        count_traffic: Told what tenants are billed for.
        record_act: Told of administrative acts on buckets.
        master_key: Wraps the keys of objects; None: only clients' own keys encrypt.
        """
        if not config.access_key or not config.secret_key:
            raise ValueError("the gateway needs an access_key and a secret_key")
        root = RootKey(config.access_key, config.secret_key)
        keys: KeySource = root
        if look_up is not None:
            keys = KeyCache(root, look_up, ttl_s=config.key_ttl_s, monotonic_s=clock.monotonic_s)
        front = S3Front(
            store,
            keys=keys,
            clock=clock,
            metrics=S3Metrics(registry),
            count_traffic=count_traffic,
            record_act=record_act,
            master_key=master_key,
            options=FrontOptions(
                region=config.region,
                check_region=config.check_region,
                domain=config.domain,
                website_domain=config.website_domain,
                bucket_ttl_s=config.bucket_ttl_s,
            ),
        )
        self._server = HttpServer(
            front.handle,
            config.address,
            clock=clock,
            share_port=config.share_port,
            tls_certificate=config.tls_certificate,
            tls_key=config.tls_key,
        )

    async def start(self) -> str:
        """Serve; returns host:port.

        Raises:
            AddressInUse: When another process listens there.
        """
        return await self._server.start()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop serving; requests in flight have `grace_s` seconds to end."""
        await self._server.stop(grace_s)
