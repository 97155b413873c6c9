"""Bytes of a file on their way into a socket: the processor does not touch them."""

import socket

from exastore.storage.disk import DiskFile

#: In place of what cannot be read; whoever asked finds out by its checksum.
_ZEROS = memoryview(bytes(64 << 10))


class FileSpan:
    """`FileBytes` of `proto/bulk_socket.py`."""

    __slots__ = ("_file", "_length_bytes", "_offset_bytes")

    def __init__(self, file: DiskFile, offset_bytes: int, length_bytes: int) -> None:
        self._file = file
        self._offset_bytes = offset_bytes
        self._length_bytes = length_bytes

    def __len__(self) -> int:
        return self._length_bytes

    @property
    def is_cached(self) -> bool:
        """Whether it can be sent without waiting for the disk."""
        return self._file.is_cached(self._length_bytes, self._offset_bytes)

    def load(self) -> bool:
        """Wait for the disk; false when the file ends before. Raises OSError."""
        return self._file.load(self._length_bytes, self._offset_bytes)

    def __getitem__(self, rest: slice) -> "FileSpan":
        start, _, _ = rest.indices(self._length_bytes)
        return FileSpan(self._file, self._offset_bytes + start, self._length_bytes - start)

    def send(self, connected: socket.socket) -> int:
        """Send some of the bytes, zeros in place of what the file does not give.

        The frame that they belong to has begun, so it has to end. What was wrong with the file is
        for the read that checks to say: whoever gets zeros asks for that.

        Raises:
            BlockingIOError: The socket takes none now.
            ConnectionError: The socket is broken.
        """
        try:
            count = self._file.send(connected.fileno(), self._length_bytes, self._offset_bytes)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError:
            count = 0
        return count or connected.send(_ZEROS[: self._length_bytes])
