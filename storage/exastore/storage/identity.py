"""What makes a folder a device: `device.json` with its uuid and the version of its format.

A device that had an I/O error has a `fenced.json`, too: no writes until an operator lifts it.
"""

import json
from collections.abc import Callable

from exastore.storage.disk import Disk
from exastore.storage.errors import DeviceUnusable

DEVICE_FILE = "device.json"
DEVICE_FORMAT_VERSION = 1
FENCE_FILE = "fenced.json"


def identify(disk: Disk, new_uuid: Callable[[], bytes]) -> bytes:
    """The uuid of the device; an empty folder gets one."""
    text = disk.read_small(DEVICE_FILE)
    if text is None:
        if disk.list("segments"):
            raise DeviceUnusable(
                f"{disk.path} has segments but no {DEVICE_FILE}: restore that file"
                " (the uuid is in bytes 12 to 28 of each segment), or move the segments away"
            )
        device_uuid = new_uuid()
        identity = {"format_version": DEVICE_FORMAT_VERSION, "uuid": device_uuid.hex()}
        disk.write_small(DEVICE_FILE, json.dumps(identity).encode() + b"\n")
        return device_uuid
    try:
        identity = json.loads(text)
        version, device_uuid = identity["format_version"], bytes.fromhex(identity["uuid"])
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceUnusable(f"{disk.path}/{DEVICE_FILE} is damaged: {error!r}") from error
    if version != DEVICE_FORMAT_VERSION or len(device_uuid) != 16:
        raise DeviceUnusable(
            f"{disk.path} has format version {version}, this software serves"
            f" {DEVICE_FORMAT_VERSION}"
        )
    return device_uuid


def fence_of(disk: Disk) -> str | None:
    """Why the device takes no writes, as noted by an earlier run; None: it takes them.

    A note that cannot be read counts: somebody had a reason to write it.
    """
    text = disk.read_small(FENCE_FILE)
    if text is None:
        return None
    try:
        reason = json.loads(text)["reason"]
        return None if reason is None else str(reason)
    except (ValueError, KeyError, TypeError):
        return f"{FENCE_FILE} cannot be read"


def note_fence(disk: Disk, reason: str) -> None:
    """Remember over restarts that the device had an error. Raises OSError."""
    disk.write_small(FENCE_FILE, json.dumps({"reason": reason}).encode() + b"\n")


def lift_fence(disk: Disk) -> bool:
    """Let the device take writes from its next start on; whether it was fenced.

    Raises:
        DeviceLocked: a node serves the device.
    """
    disk.lock()
    try:
        is_fenced = fence_of(disk) is not None
        if is_fenced:  # written, not removed: that is durable in one step
            disk.write_small(FENCE_FILE, json.dumps({"reason": None}).encode() + b"\n")
        return is_fenced
    finally:
        disk.unlock()
