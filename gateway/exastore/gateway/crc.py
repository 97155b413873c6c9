"""CRC-32C in hardware."""

from typing import cast

from awscrt import checksums


def crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C of a contiguous buffer."""
    # The library says bytes and takes any buffer.
    result: int = checksums.crc32c(cast(bytes, data))
    return result
