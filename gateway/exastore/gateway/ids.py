"""Ids of what gateways write."""

import os
from collections.abc import Callable

from exastore.metadata.core.clock import Clock


def time_ordered_ids(clock: Clock) -> Callable[[], bytes]:
    """Makes ids of 16 bytes that no other caller gets, the later the greater.

    Six bytes of milliseconds since 1970, ten random ones (as UUID version 7, RFC 9562): what is
    written together lies together in the indexes of the nodes.
    """

    def new_id() -> bytes:
        return int(clock.now_s() * 1000).to_bytes(6, "big") + os.urandom(10)

    return new_id
