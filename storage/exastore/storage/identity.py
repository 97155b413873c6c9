"""What makes a folder a device: `device.json` with its uuid and the version of its format."""

import json
from collections.abc import Callable

from exastore.storage.disk import Disk
from exastore.storage.errors import DeviceUnusable

DEVICE_FILE = "device.json"
DEVICE_FORMAT_VERSION = 1


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
