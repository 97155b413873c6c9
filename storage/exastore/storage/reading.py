"""Reading a record of a device: nothing is returned that did not pass its CRCs and its identity.

A span tells where a chunk lies, for who sends it unread to somebody who checks it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from exastore.storage.crc import Buffer
from exastore.storage.crc import crc32c as crc32c_of
from exastore.storage.errors import BadRecord, ChunkCorrupt, DeviceReadFailed, StorageError
from exastore.storage.file_span import FileSpan
from exastore.storage.index_file import Entry
from exastore.storage.log import SegmentLog
from exastore.storage.record import ChunkKey, Place, decode_header, verify_blocks
from exastore.storage.runs import BlockSpan, ByteRun, block_spans, cut_runs


class StoredChunk(NamedTuple):
    """A chunk, or runs of it, as read and verified; `crc32c` is that of `data`."""

    generation: int
    code: str
    crc32c: int
    data: bytes | memoryview


class RecordReader:
    """Reads where the index says that a chunk lies. Thread-safe.

    Args:
        note_failure: Told what the system could not read.
    """

    def __init__(
        self, log: SegmentLog, device_uuid: bytes, note_failure: Callable[[OSError], None]
    ) -> None:
        self._log = log
        self._device_uuid = device_uuid
        self._note_failure = note_failure

    def read(self, key: ChunkKey, entry: Entry, runs: Sequence[ByteRun] = ()) -> StoredChunk:
        """The record, or these runs of it. Raises ChunkCorrupt, DeviceReadFailed, InvalidChunk."""
        spans = block_spans(runs, entry.data_bytes)
        try:
            file = self._log.file_of(entry.segment)
            head = file.pread(entry.header_bytes, entry.offset_bytes)
            start = entry.offset_bytes + entry.header_bytes
            blocks = [file.pread(span.length_bytes, start + span.offset_bytes) for span in spans]
        except OSError as error:
            self._note_failure(error)
            raise DeviceReadFailed(f"segment {entry.segment}: {error}") from error
        return self._checked(key, entry, runs, spans, head, blocks)

    def read_cached(
        self, key: ChunkKey, entry: Entry, runs: Sequence[ByteRun] = ()
    ) -> StoredChunk | None:
        """The same, without ever waiting for the disk; None: ask `read`, which also says why."""
        try:
            spans = block_spans(runs, entry.data_bytes)
            pread = self._log.file_of(entry.segment).pread_cached
            head = pread(entry.header_bytes, entry.offset_bytes)
            if head is None:
                return None
            start = entry.offset_bytes + entry.header_bytes
            blocks: list[bytes | memoryview] = []
            for span in spans:
                block = pread(span.length_bytes, start + span.offset_bytes)
                if block is None:
                    return None
                blocks.append(block)
            return self._checked(key, entry, runs, spans, head, blocks)
        except (StorageError, OSError):
            return None

    def span(self, entry: Entry) -> FileSpan:
        """Where the chunk's data lie, unread and unchecked. Raises OSError, StorageError."""
        file = self._log.file_of(entry.segment)
        return FileSpan(file, entry.offset_bytes + entry.header_bytes, entry.data_bytes)

    def _checked(
        self,
        key: ChunkKey,
        entry: Entry,
        runs: Sequence[ByteRun],
        spans: Sequence[BlockSpan],
        head: Buffer,
        blocks: Sequence[bytes | memoryview],
    ) -> StoredChunk:
        """What was read, or ChunkCorrupt."""
        place = Place(self._device_uuid, entry.segment, entry.offset_bytes)
        try:
            header = decode_header(head, place)
        except BadRecord as error:
            raise ChunkCorrupt(f"segment {entry.segment}: {error}") from error
        identity = (header.key, header.generation, header.data_bytes)
        if identity != (key, entry.generation, entry.data_bytes):
            raise ChunkCorrupt(f"another chunk lies at {entry.offset_bytes}: {header.key}")
        for span, data in zip(spans, blocks, strict=True):
            verify_blocks(header, span.first_block, data, span.length_bytes)
        if not runs:
            return StoredChunk(header.generation, header.code, header.crc32c, blocks[0])
        data = cut_runs(runs, spans, blocks)
        return StoredChunk(header.generation, header.code, crc32c_of(data), data)
