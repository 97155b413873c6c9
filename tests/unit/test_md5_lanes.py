"""MD5 side by side: the digests of hashlib, whoever shares the vectors."""

import hashlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exastore.gateway import md5_lanes
from exastore.gateway.md5_lanes import LaneMd5, Lanes, new_md5


@pytest.fixture(scope="module")
def lanes() -> Lanes:
    kernel = md5_lanes._kernel()  # pyright: ignore[reportPrivateUsage]
    if kernel is None:
        pytest.skip("this processor has no AVX-512")
    return Lanes(kernel)


def digest_of(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_pieces_of_any_length_give_the_digest_of_the_whole(
    lanes: Lanes, pieces: list[bytes]
) -> None:
    md5 = LaneMd5(lanes)
    for piece in pieces:
        md5.update(piece)
    assert md5.digest() == digest_of(b"".join(pieces))
    assert md5.digest() == digest_of(b"".join(pieces)), "a digest changes nothing"


def test_bodies_of_different_lengths_are_hashed_together(lanes: Lanes) -> None:
    bodies = [bytes([number]) * (number * 100_003) for number in range(1, 41)]
    hashes = [LaneMd5(lanes) for _ in bodies]

    def take(number: int) -> None:
        view = memoryview(bodies[number])
        for start in range(0, len(view), 1 << 20):
            hashes[number].update(view[start : start + (1 << 20)])

    threads = [threading.Thread(target=take, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [md5.digest() for md5 in hashes] == [digest_of(body) for body in bodies]
    assert lanes.body_count == 0


def test_a_failure_is_told_to_all_that_wait_and_the_lanes_go_on() -> None:
    calls: list[int] = []

    def broken(state: int, data: int, count: int) -> None:
        calls.append(count)
        raise MemoryError

    lanes = Lanes(broken)
    for _ in range(2):
        with pytest.raises(MemoryError):
            LaneMd5(lanes).update(bytes(128))
    assert calls == [2, 2]


def test_short_bodies_and_other_processors_take_the_digest_of_the_library() -> None:
    md5 = new_md5(100)
    md5.update(b"abc")
    assert md5.digest() == digest_of(b"abc")
    assert not isinstance(md5, LaneMd5)
