"""Who hears what happens inside a chunk store."""

import logging
from typing import Protocol

from exastore.storage.compaction import Compacted

_log = logging.getLogger(__name__)


class StoreObserver(Protocol):
    """Hears what happens inside; called from the store's threads."""

    def synced(self, chunk_count: int, duration_s: float) -> None: ...

    def fenced(self, reason: str) -> None: ...

    def compacted(self, compacted: Compacted) -> None: ...


class SilentObserver:
    """Hears nothing."""

    def synced(self, chunk_count: int, duration_s: float) -> None:
        pass

    def fenced(self, reason: str) -> None:
        pass

    def compacted(self, compacted: Compacted) -> None:
        pass


def tell_synced(observer: StoreObserver, chunk_count: int, duration_s: float) -> None:
    """Tell it; what matters is that waiting writers are told, so its mistakes are logged alone."""
    try:
        observer.synced(chunk_count, duration_s)
    except Exception:
        _log.exception("the observer of the device failed")


def tell_fenced(observer: StoreObserver, reason: str) -> None:
    """The same for a fence."""
    try:
        observer.fenced(reason)
    except Exception:
        _log.exception("the observer of a fenced device failed")
