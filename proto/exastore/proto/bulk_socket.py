"""One connected socket that sends and receives frames, without copies of their data.

Theory of operation: the socket is non-blocking; the loop tells when it can be read or written. What
is sent goes to the system at once, head and data in one call, as long as the system takes it; the
rest waits in a queue, whose length the owner bounds. Why not a transport of asyncio: a request that
is given up must not be sent later from a buffer that is in use for other bytes, so what the system
has not taken yet must be ours to drop.

Fault model: the other side may send anything, stop at any byte or take nothing. A frame that stays
incomplete, or a queue that does not move, for one to two stall times ends the connection. So does
the system where the other machine is gone or cut off without a word, be it idle or not.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from exastore.proto.bulk_frames import BadFrame, Frame, FrameReader

#: Frames received in one go before others get their turn.
_FRAMES_PER_TURN = 8
#: So much waits for the end of the loop's turn, to be sent with what comes meanwhile.
_GATHER_BYTES = 64 << 10
#: Key of frames that are not dropped.
KEPT = -1
#: Buffers in one call; the system takes 1,024.
_MAX_BUFFERS = 64
#: What may lie in a Unix socket, as far as the system lets it: with its default of 208 KiB a chunk
#: of 1 MiB wakes both sides eight times.
_LOCAL_BUFFER_BYTES: Final = 4 << 20


class FileBytes(Protocol):
    """Bytes that the system takes from a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, rest: slice) -> "FileBytes":
        """Those behind the first ones, which were sent."""
        ...

    def send(self, connected: socket.socket) -> int:
        """Send some of them; how many the socket took.

        A file that cannot be read is no error here: other bytes are sent in place of its own.

        Raises:
            BlockingIOError: The socket takes none now.
            OSError: The socket is broken.
        """
        ...


Sendable = bytes | memoryview | FileBytes


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class _Outgoing:
    """A frame, or the rest of one, that the system has not taken."""

    #: Memory, and what stays in a file until the socket takes it.
    buffers: list[memoryview | FileBytes]
    key: int
    on_sent: Callable[[], None] | None
    begun: bool = False


class BulkSocket:
    """Lives on the event loop that is running when it is made."""

    def __init__(
        self,
        connected: socket.socket,
        reader: FrameReader,
        *,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[BadFrame | ConnectionError], None],
        stall_s: float,
        on_half_sent: Callable[[], None] = _nothing,
        on_half_received: Callable[[], None] = _nothing,
        cut_bytes: int = 0,
    ) -> None:
        """Args:
        connected: Becomes ours.
        reader: Cuts what comes into frames.
        on_frame: Called with each frame; may raise BadFrame, which ends the connection.
        on_lost: Called once when the connection ends, unless by `close`; with BadFrame when the
            other side is to blame.
        stall_s: How long nothing may move where something should, in seconds.
        on_half_sent, on_half_received: Called when a frame is cut by what the system takes or
            has; for tests that end the process there.
        cut_bytes: Send at most so many bytes at once, so that frames are cut; 0: all the system
            takes.
        """
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            _prepare(connected, stall_s)
        else:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_BUFFER_BYTES)
        self._socket = connected
        self._reader = reader
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._on_half_sent = on_half_sent
        self._cut_bytes = cut_bytes
        self._on_half_received = on_half_received
        self._stall_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Outgoing] = deque()
        #: Bytes in the queue.
        self.queued_bytes = 0
        #: Whether the loop tells when more can be sent.
        self._waits_for_room = False
        self._will_flush = False
        self._reads = False
        self._closed = False
        #: Grows with each call that moved bytes, per direction; and what it was at the last look.
        self._progress = [0, 0]
        self._seen = [0, 0]
        self.resume_reading()
        self._timer = self._loop.call_later(stall_s, self._look_for_stalls)

    # ---- sending ----

    def send(
        self,
        buffers: Sequence[Sendable],
        *,
        key: int = KEPT,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Send a frame.

        Args:
            buffers: Its bytes. Not to be changed until it is sent, or `drop` returned.
            key: By which it can be dropped.
            on_sent: Called when the system has taken all of it, or it was dropped, or the
                connection ended: the bytes are not needed any more.
        """
        if self._closed:
            if on_sent is not None:
                on_sent()
            return
        views = [
            memoryview(buffer).cast("B") if isinstance(buffer, bytes | memoryview) else buffer
            for buffer in buffers
            if len(buffer)
        ]
        self._queue.append(_Outgoing(views, key, on_sent))
        self.queued_bytes += sum(map(len, views))
        if self._waits_for_room:
            return
        if self.queued_bytes >= _GATHER_BYTES:
            self._flush()
        elif not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self._flush)

    def drop(self, key: int) -> bool:
        """Do without the frames of this key; of one that is under way, keep a copy of the rest.

        Returns whether any was still here.
        """
        found = [item for item in self._queue if item.key == key]
        for item in found:
            if item.begun:
                item.buffers = [
                    memoryview(bytes(buffer)) if isinstance(buffer, memoryview) else buffer
                    for buffer in item.buffers
                ]
            else:
                self._queue.remove(item)
                self.queued_bytes -= sum(map(len, item.buffers))
            on_sent, item.on_sent = item.on_sent, None
            if on_sent is not None:
                on_sent()
        return bool(found)

    def _flush(self) -> None:
        self._will_flush = False
        queue = self._queue
        try:
            while queue and not self._closed:
                first = queue[0].buffers[0]
                if isinstance(first, memoryview):
                    gathered = self._gathered()
                    if self._cut_bytes:
                        gathered = [gathered[0][: self._cut_bytes]]
                    self._sent(self._socket.sendmsg(gathered))
                else:
                    self._sent(first.send(self._socket))
        except BlockingIOError:
            if not self._waits_for_room:
                self._waits_for_room = True
                self._loop.add_writer(self._socket, self._flush)
            return
        except OSError as error:
            self._lose(ConnectionError(error.strerror or str(error)))
            return
        if self._waits_for_room and not self._closed:
            self._waits_for_room = False
            self._loop.remove_writer(self._socket)

    def _gathered(self) -> list[memoryview]:
        """What is in memory, from the front of the queue to the first that is not."""
        gathered: list[memoryview] = []
        for item in self._queue:
            for buffer in item.buffers:
                if not isinstance(buffer, memoryview) or len(gathered) == _MAX_BUFFERS:
                    return gathered
                gathered.append(buffer)
        return gathered

    def _sent(self, count: int) -> None:
        """Take so many bytes from the queue."""
        self._progress[1] += 1
        self.queued_bytes -= count
        done: list[Callable[[], None]] = []
        while count:
            item = self._queue[0]
            item.begun = True
            count = _without(item.buffers, count)
            if item.buffers:
                self._on_half_sent()
                break
            self._queue.popleft()
            if item.on_sent is not None:
                done.append(item.on_sent)
        for on_sent in done:  # now that the queue is right: they may send
            on_sent()

    # ---- receiving ----

    def pause_reading(self) -> None:
        """Receive nothing more for now."""
        if self._reads:
            self._reads = False
            self._loop.remove_reader(self._socket)

    def resume_reading(self) -> None:
        if not self._reads and not self._closed:
            self._reads = True
            self._loop.add_reader(self._socket, self._receive)

    def _receive(self) -> None:
        reader = self._reader
        frame_count = 0
        try:
            while self._reads and frame_count < _FRAMES_PER_TURN:
                space = reader.space()
                count = self._socket.recv_into(space)
                if not count:
                    broken = " within a frame" if reader.is_within_frame else ""
                    self._lose(ConnectionError(f"the other side closed the connection{broken}"))
                    return
                self._progress[0] += 1
                for frame in reader.received(count):
                    frame_count += 1
                    self._on_frame(frame)
                if reader.is_within_frame:
                    self._on_half_received()
        except BlockingIOError:
            return
        except BadFrame as error:
            self._lose(error)
        except OSError as error:
            self._lose(ConnectionError(error.strerror or str(error)))

    # ---- end ----

    def close(self) -> None:
        """Let go of the socket; what was not sent is dropped."""
        if self._closed:
            return
        self.pause_reading()
        if self._waits_for_room:
            self._loop.remove_writer(self._socket)
        self._closed = True
        self._timer.cancel()
        queue, self._queue = self._queue, deque()
        self.queued_bytes = 0
        with contextlib.suppress(OSError):
            self._socket.close()
        for item in queue:
            if item.on_sent is not None:
                item.on_sent()

    @property
    def is_closed(self) -> bool:
        return self._closed

    def _lose(self, why: BadFrame | ConnectionError) -> None:
        if not self._closed:
            self.close()
            self._on_lost(why)

    def _look_for_stalls(self) -> None:
        progress, seen = self._progress, self._seen
        if self._reads and self._reader.is_within_frame and progress[0] == seen[0]:
            why = f"the rest of a frame did not come within {self._stall_s:g} s"
            self._lose(BadFrame(why))
        elif self._queue and progress[1] == seen[1]:
            self._lose(BadFrame(f"the other side took nothing for {self._stall_s:g} s"))
        else:
            self._seen = list(progress)
            self._timer = self._loop.call_later(self._stall_s, self._look_for_stalls)


def _prepare(connected: socket.socket, stall_s: float) -> None:
    """No delay of small frames; an end when the other machine acknowledges nothing any more."""
    pause_s = max(1, round(stall_s / 3))
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, pause_s),
        (socket.TCP_KEEPINTVL, pause_s),
        (socket.TCP_KEEPCNT, 2),
        (socket.TCP_USER_TIMEOUT, max(1, round(1000 * stall_s))),
    ):
        connected.setsockopt(socket.IPPROTO_TCP, option, value)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _without(buffers: list[memoryview | FileBytes], count: int) -> int:
    """Take so many bytes from the front; how many there were too few."""
    while buffers:
        first = buffers[0]
        if count < len(first):
            buffers[0] = first[count:]
            return 0
        count -= len(first)
        del buffers[0]
    return count
