"""The public contract of a codec: names, shapes, ownership, errors, repair plans."""

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.erasure import Codec, ErasureError, RepairPlan, TooFewChunks, UnknownCode, codec
from exastore.erasure.errors import (
    Undecodable,
    UnknownKernel,
    WrongAlignment,
    WrongDtype,
    WrongIndex,
    WrongLayout,
    WrongReads,
    WrongShape,
)
from exastore.erasure.kernels import available_kernels
from exastore.erasure.matrix import parity_check, solve

Bytes = NDArray[np.uint8]


@pytest.fixture(params=list(available_kernels()))
def kernel(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def _data(k: int, chunk_bytes: int, seed: int = 1) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (k, chunk_bytes), dtype=np.uint8)


def _stripe(code: Codec, chunk_bytes: int) -> dict[int, Bytes]:
    data = _data(code.k, chunk_bytes)
    return dict(enumerate(np.concatenate([data, code.encode(data)])))


def test_a_codec_states_its_geometry() -> None:
    code = codec("rs-10-4")
    assert (code.name, code.k, code.m, code.n, code.overhead) == ("rs-10-4", 10, 4, 14, 1.4)
    assert code.kernel in available_kernels()
    assert repr(code) == f"<Codec rs-10-4 on {code.kernel}>"


def test_the_same_name_gives_the_same_codec() -> None:
    assert codec("rs-4-2") is codec("rs-4-2")


@pytest.mark.parametrize(
    "name",
    ",rs,rs-4,rs-0-2,rs-04-2,rs-4-02,rs-4-2 ,RS-4-2,rs-4--2,rs-٤-2,rs-250-6,rs-256-0,rs-1000-1,"
    "rep-0,rep-256,rep-3-1,lrc-12-2,lrc-12-5-2,lrc-12-0-2,lrc-240-12-4".split(","),
)
def test_an_unknown_name_is_refused_with_the_valid_forms(name: str) -> None:
    with pytest.raises(UnknownCode, match="rs-K-M") as error:
        codec(name)
    assert error.value.name == name
    assert len(error.value.valid_forms) == 4


@pytest.mark.parametrize("name", ["rs-255-0", "rs-1-254", "rs-200-55", "rep-255"])
def test_codes_of_255_chunks_give_back_lost_data(name: str, kernel: str) -> None:
    code = codec(name, kernel=kernel)
    stripe = _stripe(code, 70)
    survivors = {index: chunk for index, chunk in stripe.items() if index >= code.m}
    want = range(0, code.n, 50)
    rebuilt = code.decode(survivors, want=want)
    assert all((rebuilt[index] == stripe[index]).all() for index in want)


def test_parity_of_equal_chunks_of_zeros_is_zero(kernel: str) -> None:
    assert not codec("rs-4-2", kernel=kernel).encode(np.zeros((4, 100), dtype=np.uint8)).any()


def test_replicas_are_copies(kernel: str) -> None:
    code = codec("rep-3", kernel=kernel)
    data = _data(1, 333)
    assert (code.k, code.m, code.overhead) == (1, 2, 3.0)
    assert (code.encode(data) == np.concatenate([data, data])).all()
    assert (code.decode({2: data[0]}, want=[0, 1])[1] == data[0]).all()


def test_a_code_without_parity_has_no_parity_chunks(kernel: str) -> None:
    code = codec("rs-3-0", kernel=kernel)
    data = _data(3, 10)
    assert code.encode(data).shape == (0, 10)
    code.encode_into(data, [])
    assert code.decodable([]) and not code.decodable([0])


def test_empty_chunks_are_allowed(kernel: str) -> None:
    code = codec("rs-4-2", kernel=kernel)
    assert code.encode(np.empty((4, 0), dtype=np.uint8)).shape == (2, 0)
    chunk = np.empty(0, dtype=np.uint8)
    assert code.decode(dict.fromkeys(range(2, 6), chunk), want=[0])[0].size == 0


def test_encode_into_takes_separate_and_strided_chunks(kernel: str) -> None:
    code = codec("rs-4-2", kernel=kernel)
    data = _data(4, 1001)
    expected = code.encode(data)
    separate = [np.frombuffer(row.tobytes(), dtype=np.uint8) for row in data]  # read-only
    canvas = np.zeros((2, 2000), dtype=np.uint8)
    code.encode_into(separate, canvas[:, 3:1004])
    assert (canvas[:, 3:1004] == expected).all()
    assert not canvas[:, :3].any() and not canvas[:, 1004:].any()
    wide = np.zeros((8, 1500), dtype=np.uint8)
    wide[::2, 7:1008] = data
    assert (code.encode(wide[::2, 7:1008]) == expected).all()
    parity = [np.empty(1001, dtype=np.uint8) for _ in range(2)]
    code.encode_into([data[0], *data[1:]], parity)
    assert all((made == row).all() for made, row in zip(parity, expected, strict=True))


def test_rows_in_reverse_order_are_read_in_that_order(kernel: str) -> None:
    code = codec("rs-4-2", kernel=kernel)
    data = _data(4, 100)
    assert (code.encode(data[::-1]) == code.encode(data[::-1].copy())).all()


def test_one_array_may_be_given_for_several_data_chunks(kernel: str) -> None:
    code = codec("rs-4-2", kernel=kernel)
    chunk = _data(1, 100)[0]
    assert (code.encode([chunk] * 4) == code.encode(np.stack([chunk] * 4))).all()


WRONG_DATA: list[tuple[str, Callable[[], object], type[ErasureError]]] = [
    ("too few", lambda: _data(3, 8), WrongShape),
    ("too few separate", lambda: list(_data(3, 8)), WrongShape),
    ("one dimension", lambda: np.zeros(32, dtype=np.uint8), WrongShape),
    ("three dimensions", lambda: np.zeros((4, 8, 1), dtype=np.uint8), WrongShape),
    ("2-D chunks", lambda: [np.zeros((8, 1), dtype=np.uint8)] * 4, WrongShape),
    ("unequal", lambda: [*_data(3, 8), np.zeros(9, dtype=np.uint8)], WrongShape),
    ("int8", lambda: np.zeros((4, 8), dtype=np.int8), WrongDtype),
    ("int64 chunks", lambda: [np.zeros(8, dtype=np.int64)] * 4, WrongDtype),
    ("bytes", lambda: [b"12345678"] * 4, WrongDtype),
    ("column order", lambda: np.asfortranarray(_data(4, 8)), WrongLayout),
    ("every second byte", lambda: [np.zeros(16, dtype=np.uint8)[::2]] * 4, WrongLayout),
]


@pytest.mark.parametrize(
    ("make", "error"), [pytest.param(make, error, id=name) for name, make, error in WRONG_DATA]
)
def test_wrong_data_is_refused(make: Callable[[], Bytes], error: type[ErasureError]) -> None:
    with pytest.raises(error):
        codec("rs-4-2").encode(make())


def test_wrong_outputs_are_refused() -> None:
    code = codec("rs-4-2")
    data = _data(4, 64)
    parity = np.zeros((2, 64), dtype=np.uint8)
    with pytest.raises(WrongShape, match="63 bytes, the inputs 64"):
        code.encode_into(data, parity[:, 1:])
    with pytest.raises(WrongShape):
        code.encode_into(data, parity[:1])
    parity.flags.writeable = False
    with pytest.raises(WrongLayout, match="read-only"):
        code.encode_into(data, parity)


def test_outputs_that_overlap_anything_are_refused() -> None:
    code = codec("rs-4-2")
    memory = np.zeros(64 * 6, dtype=np.uint8)
    data = list(memory[: 64 * 4].reshape(4, 64))
    code.encode_into(data, memory[64 * 4 :].reshape(2, 64))
    with pytest.raises(WrongLayout, match="overlaps"):
        code.encode_into(data, [memory[255:319], memory[320:]])
    with pytest.raises(WrongLayout, match="overlaps"):
        code.encode_into(data, [memory[256:320], memory[319:383]])
    assert not memory.any()


def test_decode_returns_given_chunks_as_they_are_and_others_new(kernel: str) -> None:
    code = codec("rs-4-2", kernel=kernel)
    stripe = _stripe(code, 129)
    survivors = {index: stripe[index] for index in (0, 2, 4, 5)}
    rebuilt = code.decode(survivors, want=[5, 3, 0])
    assert list(rebuilt) == [0, 3, 5]
    assert rebuilt[0] is stripe[0] and rebuilt[5] is stripe[5]
    assert (rebuilt[3] == stripe[3]).all()


def test_decode_wants_the_data_when_not_told(kernel: str) -> None:
    code = codec("rs-4-2", kernel=kernel)
    stripe = _stripe(code, 65)
    rebuilt = code.decode({index: stripe[index] for index in (1, 2, 3, 5)})
    assert list(rebuilt) == [0, 1, 2, 3]
    assert (rebuilt[0] == stripe[0]).all()


def test_decode_into_fills_the_given_arrays(kernel: str) -> None:
    code = codec("rs-4-2", kernel=kernel)
    stripe = _stripe(code, 65)
    out = {5: np.zeros(65, dtype=np.uint8), 1: np.zeros(65, dtype=np.uint8)}
    code.decode_into({index: stripe[index] for index in (0, 2, 3, 4)}, out)
    assert (out[1] == stripe[1]).all() and (out[5] == stripe[5]).all()
    code.decode_into({}, {})


def test_decode_into_refuses_what_it_cannot_do() -> None:
    code = codec("rs-4-2")
    stripe = _stripe(code, 65)
    with pytest.raises(WrongShape, match="also given"):
        code.decode_into(stripe, {0: np.zeros(65, dtype=np.uint8)})
    with pytest.raises(TooFewChunks):
        code.decode_into({1: stripe[1]}, {0: np.zeros(65, dtype=np.uint8)})


def test_too_few_chunks_are_refused_unless_all_that_is_wanted_is_there() -> None:
    code = codec("rs-4-2")
    stripe = _stripe(code, 65)
    few = {index: stripe[index] for index in (1, 4, 5)}
    with pytest.raises(TooFewChunks, match="need 4 chunks, have 3") as error:
        code.decode(few, want=[0])
    assert (error.value.need, error.value.have) == (4, 3)
    assert code.decode(few, want=[1])[1] is stripe[1]
    assert code.decode({}, want=[]) == {}


@pytest.mark.parametrize("index", [-1, 6, 1.0, "1", None])
def test_a_wrong_index_is_refused(index: int) -> None:
    code = codec("rs-4-2")
    chunk = np.zeros(8, dtype=np.uint8)
    with pytest.raises(WrongIndex):
        code.decode({index: chunk}, want=[])
    with pytest.raises(WrongIndex):
        code.decode({}, want=[index])
    with pytest.raises(WrongIndex):
        code.decodable([index])
    with pytest.raises(WrongIndex):
        code.repair_plan([index])


def test_a_stripe_is_decodable_while_at_most_m_chunks_are_lost() -> None:
    code = codec("rs-4-2")
    assert all(code.decodable(lost) for lost in combinations(range(6), 2))
    assert not any(code.decodable(lost) for lost in combinations(range(6), 3))
    assert code.decodable([1, 1, 1])
    assert code.decodable(np.array([0, 5]).tolist())


def test_a_repair_plan_reads_k_survivors_whole() -> None:
    code = codec("rs-4-2")
    for count in (1, 2):
        for lost in combinations(range(6), count):
            plan = code.repair_plan(reversed(lost))
            assert plan.lost == lost
            assert plan.reads.keys().isdisjoint(lost)
            assert set(plan.reads.values()) == {1.0}
            assert (plan.read_chunk_count, plan.bytes_fraction) == (4, 4.0)
            assert plan.read_bytes(1000) == 4000


def test_what_a_repair_plan_reads_is_enough(kernel: str) -> None:
    code = codec("rs-10-4", kernel=kernel)
    stripe = _stripe(code, 65)
    plan = code.repair_plan([0, 3, 9, 12])
    rebuilt = code.decode({index: stripe[index] for index in plan.reads}, want=plan.lost)
    assert all((rebuilt[index] == stripe[index]).all() for index in plan.lost)


def test_a_repair_of_nothing_reads_nothing() -> None:
    assert codec("rs-4-2").repair_plan([]) == RepairPlan((), {})
    assert codec("rs-4-2").repair_plan([]).bytes_fraction == 0


def test_a_repair_of_a_replica_reads_one() -> None:
    assert codec("rep-3").repair_plan([0, 2]).reads == {1: 1.0}


def test_no_repair_plan_for_more_than_m_losses() -> None:
    with pytest.raises(TooFewChunks, match="need 4 chunks, have 3"):
        codec("rs-4-2").repair_plan([0, 1, 5])


ERRORS = (
    TooFewChunks(4, 3),
    WrongIndex(9, 6),
    WrongShape("text"),
    WrongAlignment(100, 64),
    WrongReads("text"),
    Undecodable(12, [0, 1], [2]),
    UnknownCode("x", ["rs-K-M"]),
    UnknownCode("x", ["rs-K-M"], "a reason"),
    UnknownKernel("x", ["portable"]),
)


def test_errors_survive_pickling() -> None:
    for error in ERRORS:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and vars(copy) == vars(error) and str(copy) == str(error)


def test_rows_that_do_not_span_the_data_cannot_decode() -> None:
    twice = np.concatenate([np.eye(2, dtype=np.uint8), np.ones((2, 2), dtype=np.uint8)])
    assert solve(parity_check(twice), [0, 1], [], [0]) is None
    reads, matrix = solve(parity_check(twice), [0, 2], [], [0, 2]) or ((), np.empty(0))
    assert reads == (1, 3) and matrix.tolist() == [[1, 1], [0, 1]]


def test_a_codec_is_shared_by_threads(kernel: str) -> None:
    code = codec("rs-6-3", kernel=kernel)
    stripe = _stripe(code, 5000)

    def rebuild(lost: tuple[int, ...]) -> bool:
        survivors = {index: chunk for index, chunk in stripe.items() if index not in lost}
        rebuilt = code.decode(survivors, want=lost)
        return all((rebuilt[index] == stripe[index]).all() for index in lost)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(rebuild, combinations(range(9), 3)))
