"""The cluster map kept fresh: one watch on a metadata server, and a fetch on demand.

Law: the epoch of the view never goes back, whichever server answers.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from exastore.gateway.cluster_view import ClusterView
from exastore.gateway.config import GatewayConfig
from exastore.gateway.errors import GatewayError, NotReady
from exastore.gateway.metadata_client import MetadataClient
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.errors import InvalidMapDelta
from exastore.proto.v1 import common_pb2

logger = logging.getLogger(__name__)


class MapCache:
    """Holds the newest ClusterView seen."""

    def __init__(
        self,
        metadata: MetadataClient,
        config: GatewayConfig,
        *,
        clock: Clock,
        on_change: Callable[[ClusterView], None] = lambda view: None,
    ) -> None:
        self._metadata = metadata
        self._config = config
        self._clock = clock
        self._on_change = on_change
        #: None until a metadata server has given a map.
        self._view: ClusterView | None = None
        self._watch: asyncio.Task[None] | None = None
        #: The fetch under way, shared by all who wait for a newer map.
        self._fetch: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the view; 0 while there is none."""
        return self._view.epoch if self._view else 0

    async def start(self) -> None:
        """Begin to watch; does not wait for a map."""
        assert self._watch is None
        self._watch = asyncio.create_task(self._watch_forever())

    async def close(self) -> None:
        for task in (self._watch, self._fetch):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, GatewayError):
                    await task

    async def view(self) -> ClusterView:
        """The newest view known; fetches the map when there is none yet."""
        if self._view is None:
            await self.refresh()
        if self._view is None:
            raise NotReady("the cluster has no map yet: too few devices have joined")
        return self._view

    async def refresh(self) -> ClusterView | None:
        """Fetch the map now; callers that come meanwhile share the fetch."""
        if self._fetch is None or self._fetch.done():
            self._fetch = asyncio.create_task(self._fetch_once())
        await asyncio.shield(self._fetch)
        return self._view

    def _take(self, message: common_pb2.ClusterMap) -> None:
        """Make the message, a full map or deltas, the view if it is newer.

        Raises:
            InvalidMapDelta: The deltas do not fit what we have.
        """
        if message.epoch <= self.epoch:
            return
        if message.deltas:
            if self._view is None:
                raise InvalidMapDelta("deltas, and there is no map yet")
            self._view = self._view.after(message)
        elif message.pgs:
            self._view = ClusterView.from_message(message)
        else:
            return
        self._on_change(self._view)

    async def _fetch_once(self) -> None:
        try:
            self._take(await self._metadata.get_map(self.epoch))
        except InvalidMapDelta as error:
            logger.warning("the cluster map: %s; fetching all of it", error)
            self._take(await self._metadata.get_map(0))

    async def _watch_forever(self) -> None:
        backoff_s = self._config.backoff_min_s
        while True:
            try:
                async for message in self._metadata.watch_map(self.epoch):
                    self._take(message)
                    backoff_s = self._config.backoff_min_s
            except InvalidMapDelta as error:
                logger.warning("watching the cluster map: %s; fetching all of it", error)
                with contextlib.suppress(GatewayError):
                    self._take(await self._metadata.get_map(0))
            except GatewayError as error:
                logger.info("watching the cluster map: %s", error)
            await self._clock.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, self._config.backoff_max_s)
