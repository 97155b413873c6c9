"""What background work reads from other nodes and writes to them, within the budgets of both sides.

Laws:
1. Nothing is asked for, and nothing sent, before this node's own budget has let it pass.
2. No data are handed on that do not have their checksum.
3. A node that answers BUSY is asked again when it says; so its budget slows us, and fails nothing.
"""

from collections.abc import Sequence

from exastore.metadata.core.clock import Clock
from exastore.proto.chunk_frames import Buffer, ReadFrame
from exastore.proto.v1 import budget_pb2, common_pb2, storage_pb2
from exastore.storage.budget import BackgroundBudget
from exastore.storage.crc import crc32c
from exastore.storage.errors import PeerFailure
from exastore.storage.peers import Peers
from exastore.storage.runs import ByteRun
from exastore.storage.status import ChunkStatus

_OK = ChunkStatus.CHUNK_STATUS_OK


class Transfers:
    """Of one node."""

    def __init__(self, peers: Peers, budget: BackgroundBudget, clock: Clock) -> None:
        self._peers = peers
        self._budget = budget
        self._clock = clock

    async def list_chunks(
        self, source: storage_pb2.RebuildSource, pg: int
    ) -> list[storage_pb2.ChunkInfo]:
        """The chunks of a placement group there. Raises PeerFailure."""
        return await self._peers.get(source.address).list_chunks(source.device_index, pg)

    async def read(
        self,
        source: storage_pb2.RebuildSource,
        chunk: common_pb2.ChunkId,
        runs: Sequence[ByteRun],
        expected_bytes: int,
        expected_crc32c: int | None,
    ) -> ReadFrame:
        """The node's answer, never BUSY; if it is OK the data are what they should be.

        Args:
            source: Where to read.
            chunk: What.
            runs: Which runs of it; none: all.
            expected_bytes: How much they are.
            expected_crc32c: Over the data, known from elsewhere; None: what the node says.

        Raises:
            PeerFailure: there is no answer, or its data are wrong.
        """
        await self._budget.receive(expected_bytes, source.rack)
        # Who knows the checksum of a whole chunk can do without the node's own look at it; when it
        # does not fit, the node looks, counts what is rotten, and says what it is.
        if expected_crc32c is not None and not runs:
            answer = await self._ask(source, chunk, runs, unchecked=True)
            if answer.status != _OK or _fits(answer, expected_bytes, expected_crc32c):
                return answer
        answer = await self._ask(source, chunk, runs, unchecked=False)
        if answer.status != _OK or _fits(answer, expected_bytes, expected_crc32c):
            return answer
        raise PeerFailure(f"slot {source.index}: the bytes do not match their checksum")

    async def _ask(
        self,
        source: storage_pb2.RebuildSource,
        chunk: common_pb2.ChunkId,
        runs: Sequence[ByteRun],
        *,
        unchecked: bool,
    ) -> ReadFrame:
        peer = self._peers.get(source.address)
        background = budget_pb2.BackgroundRead(rack=self._budget.rack)
        while True:
            answer = await peer.read(
                source.device_index, chunk, runs, background=background, unchecked=unchecked
            )
            if answer.status != ChunkStatus.CHUNK_STATUS_BUSY:
                return answer
            await self._clock.sleep(answer.header.retry_after_s)

    async def write(
        self,
        target: storage_pb2.RebuildSource,
        header: storage_pb2.WriteChunkRequest,
        data: Buffer,
    ) -> storage_pb2.WriteChunkResponse:
        """The node's answer, never BUSY; with OK the chunk is durable.

        Args:
            target: Where to.
            header: The request without its data.
            data: The chunk.

        Raises:
            PeerFailure: there is none.
        """
        await self._budget.push(len(data), target.rack)
        peer = self._peers.get(target.address)
        header.background.rack = self._budget.rack
        while True:
            answer = await peer.write(header, data)
            if answer.status != ChunkStatus.CHUNK_STATUS_BUSY:
                return answer
            await self._clock.sleep(answer.retry_after_s)


def _fits(answer: ReadFrame, expected_bytes: int, expected_crc32c: int | None) -> bool:
    known = answer.crc32c if expected_crc32c is None else expected_crc32c
    return len(answer.data) == expected_bytes and crc32c(answer.data) == known
