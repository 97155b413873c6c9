"""The documents of buckets, as a gateway knows them.

What was read is trusted for a while, so that requests do not wait for it each time. A document that
this gateway changes counts at once, one that another gateway changes after that while.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

#: Asks the metadata servers for all documents of a bucket.
LoadDocuments = Callable[[str], Awaitable[Mapping[str, bytes]]]

_BUCKET_COUNT_MAX = 10_000


class DocumentCache:
    """All documents of a bucket together: there are few, and most requests need several."""

    def __init__(
        self, load: LoadDocuments, *, ttl_s: float, monotonic_s: Callable[[], float]
    ) -> None:
        self._load = load
        self._ttl_s = ttl_s
        self._monotonic_s = monotonic_s
        #: Bucket -> (when asked, what comes), oldest first.
        self._known: dict[str, tuple[float, asyncio.Future[Mapping[str, bytes]]]] = {}

    async def get(self, bucket: str) -> Mapping[str, bytes]:
        """The documents of a bucket by name. Raises what `load` raises."""
        now_s = self._monotonic_s()
        known = self._known.get(bucket)
        if known is None or now_s - known[0] > self._ttl_s:
            while len(self._known) >= _BUCKET_COUNT_MAX:
                del self._known[next(iter(self._known))]
            known = now_s, asyncio.ensure_future(self._load(bucket))
            self._known.pop(bucket, None)
            self._known[bucket] = known
            known[1].add_done_callback(lambda done: self._drop_failed(bucket, done))
        # Shielded: one request that goes away does not take the answer from the others.
        return await asyncio.shield(known[1])

    def forget(self, bucket: str) -> None:
        """What was known of a bucket is no longer true."""
        self._known.pop(bucket, None)

    def _drop_failed(self, bucket: str, done: asyncio.Future[Mapping[str, bytes]]) -> None:
        known = self._known.get(bucket)
        if done.cancelled() or done.exception() is not None:
            if known is not None and known[1] is done:
                del self._known[bucket]
