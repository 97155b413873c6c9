"""Errors of the gateway.

GatewayError
├── RequestError            the client asked for something that cannot be: NoSuchKey, BadDigest, ...
└── ServiceError            the cluster cannot serve it now; a retry may succeed
    ├── TooFewChunks        fewer than k chunks of a stripe could be read: nothing wrong is returned
    ├── TooFewDevices       fewer devices than the write quorum took the chunks
    ├── NoSpace             the devices are full
    └── MetadataUnavailable no metadata server answers
"""


class GatewayError(Exception):
    """Base of all errors here."""


class RequestError(GatewayError):
    """An S3 error: `code` is S3's own name ("NoSuchKey"), `message` a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


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
