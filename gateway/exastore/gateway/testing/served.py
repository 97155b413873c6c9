"""A store behind the real HTTP server, in a thread of its own, for clients that block."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

from prometheus_client import CollectorRegistry

from exastore.gateway.config import GatewayConfig
from exastore.gateway.master_key import MasterKey
from exastore.gateway.s3.front import CountTraffic, count_nothing
from exastore.gateway.s3.guard import RecordAct, record_nothing
from exastore.gateway.s3.identity import LookUp
from exastore.gateway.s3.service import S3Service
from exastore.gateway.store import ObjectStore
from exastore.metadata.core.clock import Clock


class ServedStore:
    """Serves a store while the `with` block runs."""

    def __init__(
        self,
        new_store: Callable[[], ObjectStore],
        config: GatewayConfig,
        *,
        clock: Clock,
        look_up: LookUp | None = None,
        count_traffic: CountTraffic = count_nothing,
        record_act: RecordAct = record_nothing,
        master_key: MasterKey | None = None,
    ) -> None:
        self._new_store = new_store
        self._config = config
        self._clock = clock
        self._look_up = look_up
        self._count_traffic = count_traffic
        self._record_act = record_act
        self._master_key = master_key
        self.registry = CollectorRegistry()
        #: host:port, once entered.
        self.address = ""
        self._ready: Future[str] = Future()
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop() -> None:
            loop.call_soon_threadsafe(stopping.set)

        self._stop = stop
        service = S3Service(
            self._new_store(),
            self._config,
            clock=self._clock,
            registry=self.registry,
            look_up=self._look_up,
            count_traffic=self._count_traffic,
            record_act=self._record_act,
            master_key=self._master_key,
        )
        try:
            self._ready.set_result(await service.start())
        except BaseException as error:
            self._ready.set_exception(error)
            return
        await stopping.wait()
        await service.stop(grace_s=1.0)

    def __enter__(self) -> "ServedStore":
        self._thread.start()
        self.address = self._ready.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        self._thread.join()
