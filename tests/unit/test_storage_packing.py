"""A storage node packs: what it reads is checked, and all of a stripe is told or nothing."""

import asyncio
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tests.unit.metadata_cluster import ManualClock

from exastore.erasure import codec
from exastore.proto.chunk_frames import Buffer, ReadFrame
from exastore.proto.v1 import budget_pb2, common_pb2, storage_pb2, upkeep_pb2
from exastore.storage.budget import BackgroundBudget
from exastore.storage.crc import crc32c
from exastore.storage.errors import PeerFailure
from exastore.storage.metrics import StorageMetrics
from exastore.storage.packing import PackServicer
from exastore.storage.peers import Peers
from exastore.storage.runs import ByteRun
from exastore.storage.transfers import Transfers

CODE = codec("rs-2-1")
RACK = "eu/z/a"
BUSY = storage_pb2.CHUNK_STATUS_BUSY
CHUNK_BYTES = 4096


class Aborted(Exception):
    """What a call ended with."""


class FakePeer:
    """A node over a dictionary: (device, stripe, slot) -> bytes."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, bytes, int], bytes] = {}
        self.refused: set[int] = set()
        #: So many requests are answered BUSY from now on.
        self.busy_count = 0

    async def read(
        self,
        device: int,
        chunk: common_pb2.ChunkId,
        runs: list[ByteRun],
        background: budget_pb2.BackgroundRead,
        unchecked: bool,
    ) -> ReadFrame:
        assert background.rack == RACK
        if self.is_busy():
            busy = storage_pb2.ReadChunkResponse(status=BUSY, retry_after_s=0.5)
            return ReadFrame(busy, b"")
        data = self.chunks.get((device, chunk.stripe_id, chunk.index))
        if data is None:
            missing = storage_pb2.ReadChunkResponse(status=storage_pb2.CHUNK_STATUS_NOT_FOUND)
            return ReadFrame(missing, b"")
        if runs:
            (run,) = runs
            data = data[run.offset_bytes : run.offset_bytes + run.length_bytes]
        return ReadFrame(storage_pb2.ReadChunkResponse(status=storage_pb2.CHUNK_STATUS_OK), data)

    async def write(
        self, header: storage_pb2.WriteChunkRequest, data: Buffer
    ) -> storage_pb2.WriteChunkResponse:
        assert header.background.rack == RACK
        if self.is_busy():
            return storage_pb2.WriteChunkResponse(status=BUSY, retry_after_s=0.5)
        if header.device_index in self.refused:
            return storage_pb2.WriteChunkResponse(status=storage_pb2.CHUNK_STATUS_NO_SPACE)
        assert crc32c(data) == header.crc32c
        self.chunks[header.device_index, header.chunk.stripe_id, header.chunk.index] = bytes(data)
        return storage_pb2.WriteChunkResponse(status=storage_pb2.CHUNK_STATUS_OK)

    def is_busy(self) -> bool:
        self.busy_count -= 1
        return self.busy_count >= 0


class OnePeer:
    """All nodes are one."""

    def __init__(self) -> None:
        self.peer = FakePeer()

    def get(self, address: str) -> FakePeer:
        if address == "away":
            raise PeerFailure("away")
        return self.peer


class Context:
    """Of a call."""

    async def abort(self, code: Any, details: str) -> None:
        raise Aborted(details)


def holder(slot: int, device: int) -> storage_pb2.RebuildSource:
    return storage_pb2.RebuildSource(index=slot, device_index=device, address="node")


def log_source(peers: OnePeer, number: int, data: bytes, offset: int) -> upkeep_pb2.PackSource:
    """A small object with copies on devices 0 and 1."""
    stripe_id = bytes([number]) * 16
    for slot in range(2):
        peers.peer.chunks[slot, stripe_id, slot] = data
    extent = common_pb2.Extent(
        stripe_id=stripe_id,
        data_bytes=len(data),
        chunk_bytes=len(data),
        chunk_crc32c=[crc32c(data)] * 2,
        is_log=True,
    )
    holders = [holder(0, 0), holder(1, 1)]
    return upkeep_pb2.PackSource(extent=extent, offset=offset, holders=holders)


def request_of(*sources: upkeep_pb2.PackSource) -> upkeep_pb2.PackStripeRequest:
    return upkeep_pb2.PackStripeRequest(
        pg=3,
        stripe_id=b"p" * 16,
        code=CODE.name,
        epoch=1,
        chunk_bytes=CHUNK_BYTES,
        targets=[holder(slot, 10 + slot) for slot in range(CODE.n)],
        sources=sources,
    )


async def pack(
    peers: OnePeer, request: upkeep_pb2.PackStripeRequest
) -> upkeep_pb2.PackStripeResponse:
    metrics = StorageMetrics(CollectorRegistry())
    clock = ManualClock()
    budget = BackgroundBudget(RACK, clock, metrics)
    budget.take_grant(budget_pb2.BackgroundGrant())
    servicer = PackServicer(Transfers(cast(Peers, peers), budget, clock), codec, metrics)
    packing = asyncio.create_task(servicer.PackStripe(request, Context()))
    while not packing.done():
        clock.advance(0.1)
        await asyncio.sleep(0.001)  # a thread loads the code
    load = budget.load()
    sent = CODE.n * CHUNK_BYTES
    assert load.sent_bytes == sent or packing.exception(), "what is written counts"
    wanted = sum(source.extent.data_bytes for source in request.sources)
    assert load.received_bytes >= wanted or packing.exception(), "so does what is read"
    return packing.result()


def stripe_of(peers: OnePeer) -> list[bytes]:
    return [peers.peer.chunks[10 + slot, b"p" * 16, slot] for slot in range(CODE.n)]


async def test_objects_lie_where_they_should_and_the_parity_belongs_to_them() -> None:
    peers = OnePeer()
    first, second = b"a" * 1000, b"b" * 4096
    request = request_of(log_source(peers, 1, first, 50), log_source(peers, 2, second, CHUNK_BYTES))
    response = await pack(peers, request)
    assert [piece.crc32c for piece in response.slices] == [crc32c(first), crc32c(second)]
    chunks = stripe_of(peers)
    assert list(response.chunk_crc32c) == [crc32c(chunk) for chunk in chunks]
    assert chunks[0] == b"\x00" * 50 + first + b"\x00" * (CHUNK_BYTES - 1050)
    assert chunks[1] == second
    data = np.array([np.frombuffer(chunk, dtype=np.uint8) for chunk in chunks[:2]])
    assert CODE.encode(data)[0].tobytes() == chunks[2]


async def test_slices_of_another_stripe_are_packed_anew() -> None:
    peers = OnePeer()
    await pack(peers, request_of(log_source(peers, 1, b"a" * 1000, CHUNK_BYTES + 50)))
    old = common_pb2.Extent(
        stripe_id=b"p" * 16,
        data_bytes=1000,
        chunk_bytes=CHUNK_BYTES,
        is_slice=True,
        slice_offset=CHUNK_BYTES + 50,
        slice_crc32c=crc32c(b"a" * 1000),
    )
    source = upkeep_pb2.PackSource(extent=old, offset=7, holders=[holder(1, 11)])
    request = request_of(source)
    request.stripe_id = b"q" * 16
    response = await pack(peers, request)
    assert not response.slices[0].error
    assert peers.peer.chunks[10, b"q" * 16, 0][7:1007] == b"a" * 1000


async def test_a_rotten_copy_is_replaced_by_another_and_without_one_the_object_is_left_out() -> (
    None
):
    peers = OnePeer()
    sources = [log_source(peers, n, bytes([n]) * 1000, 1000 * n) for n in range(3)]
    peers.peer.chunks[0, bytes([1]) * 16, 0] = b"x" * 1000
    for slot in range(2):
        peers.peer.chunks[slot, bytes([2]) * 16, slot] = b"x" * 1000
    response = await pack(peers, request_of(*sources))
    assert [bool(piece.error) for piece in response.slices] == [False, False, True]
    assert stripe_of(peers)[0][1000:4000] == b"\x01" * 1000 + b"\x00" * 2000


async def test_a_stripe_that_lacks_a_chunk_is_no_stripe() -> None:
    peers = OnePeer()
    peers.peer.refused = {12}
    with pytest.raises(Aborted, match="slot 2: no_space"):
        await pack(peers, request_of(log_source(peers, 1, b"a" * 10, 0)))


async def test_nodes_whose_budget_is_spent_are_asked_again() -> None:
    peers = OnePeer()
    peers.peer.busy_count = 4
    response = await pack(peers, request_of(log_source(peers, 1, b"a" * 10, 0)))
    assert not response.slices[0].error
    assert peers.peer.busy_count < 0 and len(stripe_of(peers)) == CODE.n


async def test_no_object_may_lie_across_chunks() -> None:
    peers = OnePeer()
    with pytest.raises(Aborted, match="within one data chunk"):
        await pack(peers, request_of(log_source(peers, 1, b"a" * 1000, CHUNK_BYTES - 999)))
