"""Buffers that are used again: never while anything still looks at them."""

import socket

import numpy as np

from exastore.proto.buffer_pool import BufferPool


def address(view: memoryview) -> int:
    return np.frombuffer(view, dtype=np.uint8).ctypes.data


def test_a_buffer_that_was_let_go_is_the_next_one() -> None:
    pool = BufferPool(1000, 3)
    buffers = [pool.take(1000) for _ in range(3)]
    addresses = [address(buffer) for buffer in buffers]
    del buffers[0]
    del buffers[1]
    assert address(pool.take(600)) == addresses[2]
    assert address(pool.take(1000)) == addresses[2]


def test_a_buffer_is_not_given_out_while_any_view_of_it_is_left() -> None:
    pool = BufferPool(1000, 8)
    views: list[object] = []
    buffer = pool.take(1000)
    taken = address(buffer)
    buffer[:] = b"x" * 1000
    views += [buffer[5:10], np.frombuffer(buffer[900:], dtype=np.uint8), buffer.toreadonly()]
    views.append(np.frombuffer(buffer, dtype=np.uint8)[::7])
    del buffer
    while views:
        assert address(pool.take(1000)) != taken
        views.pop(0)
    assert address(pool.take(1000)) == taken


def test_what_a_socket_has_not_taken_keeps_its_buffer() -> None:
    pool = BufferPool(1 << 20, 8)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        queue = [pool.take(1 << 20)]
        queue[0][:] = b"a" * (1 << 20)
        sent = ours.send(queue[0])
        queue[0] = queue[0][sent:]
        for _ in range(3):
            pool.take(1 << 20)[:] = b"b" * (1 << 20)
        assert len(queue[0]) > 0
        assert bytes(queue[0]) == b"a" * len(queue[0])


def test_no_more_than_the_count_is_kept() -> None:
    pool = BufferPool(1000, 2)
    buffers = [pool.take(1000) for _ in range(5)]
    buffers.clear()
    assert pool.free_bytes == 2000


def test_sizes_far_from_a_slot_do_not_take_one() -> None:
    pool = BufferPool(1000, 2)
    for size in (0, 1, 250, 1001):
        assert len(pool.take(size)) == size
    assert pool.free_bytes == 0
    assert len(pool.take(251)) == 251
    assert pool.free_bytes == 1000
