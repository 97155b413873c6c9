"""What can go wrong in this room.

StorageError
|-- LocalMisuse                    the caller is wrong; retrying will not help
|   |-- ChunkConflict              the identity exists with other bytes
|   `-- InvalidChunk               the identity or the size cannot be stored
|-- DeviceError                    the device, or what is on it, is in the way
|   |-- DeviceLocked               another process has the device open
|   |-- DeviceUnusable             the folder is not a device this version can serve
|   |-- DeviceFenced               an I/O error happened; no more writes
|   |-- DeviceClosed               the store was closed
|   |-- DeviceReadFailed           the system could not read
|   |-- NoSpace                    the reserve is reached; reads go on
|   |-- IndexDamaged               the index file cannot be trusted
|   |-- LogTooShort                the index file speaks of records that the log has not
|   `-- IndexFull                  the disk has no room for the index file
|-- ChunkNotFound
|-- Corruption
|   |-- BadRecord                  bytes on disk are not the record that belongs there
|   |-- ChunkCorrupt               a stored chunk fails its checks
|   `-- TransferCorrupt            received bytes do not match the sender's checksum
`-- RemoteFailure
    |-- PeerFailure                another storage node failed or said no
    `-- AddressInUse               the address to listen on is taken
"""

from pathlib import Path


class StorageError(Exception):
    """Root of this tree."""


class LocalMisuse(StorageError):
    """The caller is wrong; retrying will not help."""


class ChunkConflict(LocalMisuse):
    """The identity exists with other bytes, or a newer generation of it does."""


class InvalidChunk(LocalMisuse):
    """The identity or the size cannot be stored."""


class RequestRefused(StorageError):
    """The sender must look at the cluster map again."""


class StaleEpoch(RequestRefused):
    """The map has moved on, or the sender is ahead of all that this node can learn."""


class WrongDevice(RequestRefused):
    """This node does not hold that device."""


class DeviceError(StorageError):
    """The device, or what is on it, is in the way."""


class DeviceLocked(DeviceError):
    """Another process has the device open."""

    def __init__(self, path: Path, holder: str) -> None:
        self.path = path
        self.holder = holder
        super().__init__(f"device {path} is in use by process {holder}: stop it first")


class DeviceUnusable(DeviceError):
    """The folder is not a device this version can serve."""


class DeviceFenced(DeviceError):
    """An I/O error happened on the device; it takes no more writes."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the device is fenced after an I/O error: {reason}")


class DeviceClosed(DeviceError):
    """The store was closed."""


class DeviceReadFailed(DeviceError):
    """The system could not read; other chunks of the device may be readable."""


class NoSpace(DeviceError):
    """Writing this would eat into the reserve of the device."""

    def __init__(self, needed_bytes: int, available_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        super().__init__(
            f"no space: {needed_bytes} bytes needed, {max(0, available_bytes)} available"
            " above the reserve"
        )


class IndexDamaged(DeviceError):
    """The index file cannot be trusted; the segments still tell all."""


class LogTooShort(DeviceError):
    """The index file speaks of records that the log does not have: it is made anew."""


class IndexFull(DeviceError):
    """The disk has no room for the index file; what it says is as old as before."""


class ChunkNotFound(StorageError):
    """The device does not hold the chunk."""


class Corruption(StorageError):
    """Bytes are not what they should be."""


class BadRecord(Corruption):
    """Bytes on disk are not the record that belongs at this place."""


class ChunkCorrupt(Corruption):
    """A stored chunk fails its checks."""


class TransferCorrupt(Corruption):
    """Received bytes do not match the checksum that the sender computed."""


class RemoteFailure(StorageError):
    """Something outside this process is in the way."""


class PeerFailure(RemoteFailure):
    """Another storage node failed or said no."""


class AddressInUse(RemoteFailure, OSError):
    """The address to listen on is taken."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(f"cannot listen on {address}: the address is in use or not ours")
