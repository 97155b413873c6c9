"""Errors of the gateway.

GatewayError
├── RequestError            the client asked for something that cannot be: NoSuchKey, BadDigest, ...
│   └── MarkerFound         a delete marker is all there is
├── MasterKeyError          the master key is missing, or does not open what was sealed
├── SealBroken              sealed bytes are damaged, or of another object
└── ServiceError            the cluster cannot serve it now; a retry may succeed
    ├── TooFewChunks        fewer than k chunks of a stripe could be read: nothing wrong is returned
    ├── TooFewDevices       fewer devices than the write quorum took the chunks
    ├── NoSpace             the devices are full
    ├── MetadataUnavailable no metadata server answers
    ├── NotReady            there is no cluster map yet: too few devices have joined
    ├── NodeUnavailable     a storage node does not answer
    │   └── NodeSlow        it answers others, but not this request in time
    ├── StaleEpoch          something was written under an old cluster map
    └── ObjectChanged       the object was replaced or deleted while it was being read
"""


class GatewayError(Exception):
    """Base of all errors here."""


class RequestError(GatewayError):
    """An S3 error: `code` is S3's own name ("NoSuchKey"), `message` a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class MarkerFound(RequestError):
    """A delete marker, where a version with bytes was asked for."""

    def __init__(self, version_id: str, modified_s: float, *, is_named: bool) -> None:
        """Args:
        is_named: Whether it was asked for by its id; else it is the newest version of the key.
        """
        if is_named:
            super().__init__(
                "MethodNotAllowed", "The specified method is not allowed against this resource."
            )
        else:
            super().__init__("NoSuchKey", "The specified key does not exist.")
        self.version_id = version_id
        self.modified_s = modified_s
        self.is_named = is_named


class MasterKeyError(GatewayError):
    """The master key cannot be used; the message says why."""


class SealBroken(GatewayError):
    """Sealed bytes do not open with their key; nothing wrong is returned."""


class ServiceError(GatewayError):
    """The cluster cannot serve the request now."""


class TooFewChunks(ServiceError):
    """A stripe has fewer readable chunks than its code needs."""

    def __init__(self, need: int, have: int, stripe_id: bytes) -> None:
        super().__init__(f"stripe {stripe_id.hex()}: {have} chunks readable, {need} needed")
        self.need = need
        self.have = have
        self.stripe_id = stripe_id


class TooFewDevices(ServiceError):
    """A write did not reach its quorum."""

    def __init__(self, need: int, have: int, message: str = "") -> None:
        super().__init__(
            f"{have} of at least {need} chunks are durable{': ' if message else ''}{message}"
        )
        self.need = need
        self.have = have


class NoSpace(ServiceError):
    """The devices of the cluster are full."""


class MetadataUnavailable(ServiceError):
    """No metadata server answers."""


class NotReady(ServiceError):
    """There is no cluster map yet."""


class NodeUnavailable(ServiceError):
    """A storage node does not answer."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(f"storage node {address}: {why}")
        self.address = address
        self.why = why


class NodeSlow(NodeUnavailable):
    """A storage node answers other requests, but not this one in time."""


class StaleEpoch(ServiceError):
    """The cluster map changed in between; fetch it and try again."""


class ObjectChanged(ServiceError):
    """The object's chunks are gone: it was replaced or deleted while it was being read."""
