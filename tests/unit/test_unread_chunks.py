"""Chunks that go from a file into a socket unread: what is sent, and who finds what is wrong."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.gateway_fakes import BytesBody, fake_cluster, some_bytes
from tests.unit.test_bulk_port import FakeChunks, read_of, serving

from exastore.gateway.store import ObjectAttributes, Precondition
from exastore.proto.bulk_socket import FileBytes
from exastore.proto.links import ChunkTransport
from exastore.proto.v1 import storage_pb2
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import DiskFile, PosixDisk, PosixFile
from exastore.storage.file_span import FileSpan
from exastore.storage.log import StoreOptions
from exastore.storage.record import ChunkKey

MIB = 1 << 20
DATA = some_bytes(MIB + 777)
KEY = ChunkKey(1, bytes(16), 0)
OPTIONS = StoreOptions(segment_bytes=4 << 20, allocate_bytes=1 << 16, reserve_bytes=1000)
OK = storage_pb2.CHUNK_STATUS_OK


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PosixDisk]:
    disk = PosixDisk(tmp_path / "device")
    disk.lock()
    yield disk
    disk.unlock()


@pytest.fixture
def file(disk: PosixDisk) -> Iterator[DiskFile]:
    file = disk.create("file")
    file.pwrite([DATA], 0)
    yield file
    file.close()


def sent(span: FileBytes) -> bytes:
    """What comes out at the other end of a socket that takes little at a time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        got = bytearray()
        while len(span):
            try:
                span = span[span.send(ours) :]
            except BlockingIOError:
                got += theirs.recv(50_000)
        ours.shutdown(socket.SHUT_WR)
        while data := theirs.recv(MIB):
            got += data
    return bytes(got)


class BadSector(PosixFile):
    """A file that cannot be read."""

    def send(self, target: int, length_bytes: int, offset_bytes: int) -> int:
        raise OSError(errno.EIO, "bad sector")


def test_a_span_is_sent_as_it_lies_in_the_file(file: DiskFile) -> None:
    assert sent(FileSpan(file, 100, MIB)) == DATA[100 : MIB + 100]


def test_what_a_file_does_not_give_is_sent_as_zeros_so_that_the_frame_ends(
    file: DiskFile,
) -> None:
    beyond = sent(FileSpan(file, MIB, 200_000))
    assert (beyond[:777], beyond[777:]) == (DATA[MIB:], bytes(200_000 - 777))
    assert sent(FileSpan(BadSector(-1), 0, 100_000)) == bytes(100_000)


def test_a_socket_that_broke_is_told(file: DiskFile) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ConnectionError):
        FileSpan(file, 0, 100).send(ours)


def test_pages_that_were_dropped_are_not_in_memory(disk: PosixDisk, file: DiskFile) -> None:
    if not file.is_cached(len(DATA), 0):
        pytest.skip("this Linux cannot tell")
    assert file.is_cached(10, 5000)
    assert not file.is_cached(len(DATA) + (1 << 16), 0), "the file ends before"
    file.sync()
    fd = os.open(disk.path / "file", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert not file.is_cached(len(DATA), 0)
    assert file.load(len(DATA), 0)
    assert file.is_cached(len(DATA), 0)
    assert not file.load(len(DATA), 1), "the file ends before"


def test_a_store_tells_where_a_chunk_of_this_generation_lies(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path / "device")
    store = ChunkStore.open(disk, OPTIONS, new_uuid=lambda: b"\x07" * 16)
    store.write(KEY, 3, "rs-4-2", DATA, crc32c(DATA))
    found = store.span(KEY, 3)
    assert found is not None
    span, crc = found
    assert sent(span) == DATA
    assert crc == crc32c(DATA)
    assert store.span(KEY, 2) is None
    assert store.span(ChunkKey(1, bytes(16), 1), 3) is None
    store.close()


class UnreadChunks(FakeChunks):
    """Those with an odd request id come from a file."""

    def __init__(self, file: DiskFile) -> None:
        super().__init__()
        self.file = file

    def unread_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, FileBytes] | None:
        if request.request_id % 2 == 0:
            return None
        response = storage_pb2.ReadChunkResponse(request_id=request.request_id, status=OK)
        return response, FileSpan(self.file, request.request_id, MIB)


@pytest.mark.parametrize("transport", [ChunkTransport.LOCAL, ChunkTransport.TCP])
async def test_unread_chunks_and_others_pass_over_one_connection(
    transport: ChunkTransport, file: DiskFile
) -> None:
    async with serving(chunks=UnreadChunks(file)) as served:
        link = await served.open(transport)
        for request_id in range(1, 41):  # ten times what the connection may have in flight
            link.send(request_id, read_of(request_id, 1000 * request_id))
        for _ in range(40):
            answer = await served.answers.get()
            number = answer.request_id
            expected = DATA[number : number + MIB] if number % 2 else bytes(1000 * number)
            assert bytes(answer.data) == expected
        link.close()


async def test_an_unread_chunk_that_is_given_up_leaves_the_connection_whole(file: DiskFile) -> None:
    async with serving(chunks=UnreadChunks(file)) as served:
        link = await served.open(ChunkTransport.TCP)
        for request_id in range(1, 41, 2):
            link.send(request_id, read_of(request_id))
        await served.answers.get()
        for request_id in range(3, 41, 2):
            link.forget(request_id)
        link.send(51, read_of(51))
        async with asyncio.timeout(20):
            while (answer := await served.answers.get()).request_id != 51:
                pass
        assert bytes(answer.data) == DATA[51 : MIB + 51]
        link.close()


@pytest.mark.parametrize("is_rotten", [False, True], ids=["moved-meanwhile", "rotten"])
async def test_what_came_unchecked_and_wrong_is_asked_for_again_and_the_node_says_why(
    is_rotten: bool,
) -> None:
    async with fake_cluster() as cluster:
        data = some_bytes(900_000)
        body = BytesBody(data)
        await cluster.store.put_object("bucket", "key", body, ObjectAttributes(), Precondition())
        for node in cluster.nodes[:2]:
            node.wrong_unless_checked = True
            node.finds_rot = is_rotten
        reader = await cluster.store.open_object("bucket", "key")
        assert b"".join([bytes(piece) async for piece in reader.read()]) == data
        requests = {
            result: cluster.registry.get_sample_value(
                "exastore_gateway_chunk_requests_total", {"operation": "read", "result": result}
            )
            for result in ("corrupt", "wrong_bytes")
        }
        assert requests["wrong_bytes"] is None, "no node insists on wrong bytes"
        assert bool(requests["corrupt"]) is is_rotten
