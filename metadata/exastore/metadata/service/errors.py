"""Errors of the metadata server.

ServiceError
├── NotReady        there is no cluster map yet
├── StaleEpoch      an extent was written under an old map
├── WrongPool       an extent was written outside its bucket's pool
├── MapOutdated     internal: another server changed the map; reload it and try again
├── LeaseLost       internal: another server does the background work now
├── AuditFailed     an act was done, and could not be written to the audit log
├── Refused         an operation that the cluster cannot or must not carry out now
└── WrongCluster    the engine holds another cluster than the configuration says
AddressInUse (OSError)
"""

import errno


class ServiceError(Exception):
    """Base of all errors here."""


class NotReady(ServiceError):
    """No cluster map yet; the message says what it waits for."""


class StaleEpoch(ServiceError):
    """An extent's placement group changed after the extent was written."""

    def __init__(self, pg: int, written_epoch: int, pg_epoch: int) -> None:
        super().__init__(
            f"placement group {pg} changed in epoch {pg_epoch}, "
            f"the extent was written under epoch {written_epoch}"
        )
        self.pg = pg
        self.written_epoch = written_epoch
        self.pg_epoch = pg_epoch


class WrongPool(ServiceError):
    """An extent lies in a placement group that is not of its bucket's pool."""

    def __init__(self, pg: int, pool: str) -> None:
        super().__init__(f"placement group {pg} is not in the bucket's pool, {pool!r}")
        self.pg = pg
        self.pool = pool


class MapOutdated(ServiceError):
    """The cached map is not the stored one."""


class LeaseLost(ServiceError):
    """The background lease has another holder or token."""


class Refused(ServiceError):
    """An operation that cannot or must not be done; the message says why and what to do."""


class AuditFailed(ServiceError):
    """The audit log takes nothing: the act was done, and is not recorded."""


class WrongCluster(ServiceError):
    """The stored map and the configuration disagree."""


class AddressInUse(OSError):
    """The server cannot listen at its address."""

    def __init__(self, address: str) -> None:
        super().__init__(
            errno.EADDRINUSE, f"cannot listen at {address}: the address is in use or not ours"
        )
        self.address = address
