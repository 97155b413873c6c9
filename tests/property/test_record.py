"""Whatever happens to the bytes of a record, it is noticed."""

import struct

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exastore.storage.crc import crc32c
from exastore.storage.errors import BadRecord, ChunkCorrupt, InvalidChunk
from exastore.storage.record import (
    BLOCK_BYTES,
    MAX_CHUNK_BYTES,
    ChunkKey,
    Place,
    RecordHeader,
    RecordKind,
    block_crcs,
    check_key,
    combined_crc,
    decode_header,
    encode_header,
    verify_data,
)

uint32 = st.integers(0, 2**32 - 1)
keys = st.builds(ChunkKey, uint32, st.binary(min_size=16, max_size=16), st.integers(0, 254))
places = st.builds(Place, st.binary(min_size=16, max_size=16), uint32, st.integers(0, 2**48))
codes = st.sampled_from(["", "rs-4-2", "lrc-12-2-2", "clay-10-4-13"])


@st.composite
def chunks(draw: st.DrawFn) -> tuple[RecordHeader, bytes, Place]:
    """A chunk record, sizes around the edge of a block among them."""
    size = draw(
        st.one_of(
            st.integers(0, 300),
            st.sampled_from([BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 7]),
        )
    )
    seed = draw(st.binary(min_size=1, max_size=64))
    data = (seed * (size // len(seed) + 1))[:size]
    header = RecordHeader(
        RecordKind.CHUNK,
        draw(keys),
        draw(uint32),
        draw(codes),
        size,
        block_crcs(data),
        draw(st.booleans()),
    )
    return header, data, draw(places)


def accept(record: bytes, place: Place, expected: RecordHeader) -> None:
    """Read a record as the store does: header, identity, data. Raises when something is wrong."""
    header = decode_header(record, place)
    if header.key != expected.key or header.generation != expected.generation:
        raise ChunkCorrupt("another chunk")
    verify_data(header, record[header.header_bytes : header.record_bytes])


@given(chunks())
def test_a_record_reads_back_as_written(chunk: tuple[RecordHeader, bytes, Place]) -> None:
    header, data, place = chunk
    record = encode_header(header, place) + data
    assert len(record) == header.record_bytes
    assert decode_header(record, place) == header
    accept(record, place, header)


@given(chunks(), st.data())
def test_any_flipped_bit_is_detected(
    chunk: tuple[RecordHeader, bytes, Place], choose: st.DataObject
) -> None:
    header, data, place = chunk
    record = bytearray(encode_header(header, place) + data)
    bit = choose.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises((BadRecord, ChunkCorrupt)):
        accept(bytes(record), place, header)


@given(chunks(), st.data())
def test_any_truncation_is_detected(
    chunk: tuple[RecordHeader, bytes, Place], choose: st.DataObject
) -> None:
    header, data, place = chunk
    record = encode_header(header, place) + data
    length = choose.draw(st.integers(0, len(record) - 1))
    with pytest.raises((BadRecord, ChunkCorrupt)):
        accept(record[:length], place, header)


@given(chunks(), st.data())
def test_a_run_of_zeros_over_any_part_is_detected(
    chunk: tuple[RecordHeader, bytes, Place], choose: st.DataObject
) -> None:
    header, data, place = chunk
    record = encode_header(header, place) + data
    start = choose.draw(st.integers(0, len(record) - 1))
    end = choose.draw(st.integers(start + 1, len(record)))
    lost = record[:start] + bytes(end - start) + record[end:]
    assume(lost != record)
    with pytest.raises((BadRecord, ChunkCorrupt)):
        accept(lost, place, header)


@given(chunks(), places)
def test_a_record_at_another_place_is_detected(
    chunk: tuple[RecordHeader, bytes, Place], elsewhere: Place
) -> None:
    header, data, place = chunk
    assume(elsewhere != place)
    with pytest.raises(BadRecord):
        accept(encode_header(header, place) + data, elsewhere, header)


@given(chunks(), chunks())
def test_swapped_records_are_detected(
    one: tuple[RecordHeader, bytes, Place], two: tuple[RecordHeader, bytes, Place]
) -> None:
    assume(one[2] != two[2])
    first = encode_header(one[0], one[2]) + one[1]
    second = encode_header(two[0], two[2]) + two[1]
    with pytest.raises(BadRecord):
        accept(second, one[2], one[0])
    with pytest.raises(BadRecord):
        accept(first, two[2], two[0])


@given(chunks(), st.binary(min_size=1, max_size=300))
def test_data_of_another_chunk_is_detected(
    chunk: tuple[RecordHeader, bytes, Place], seed: bytes
) -> None:
    header, data, place = chunk
    other = (seed * (len(data) // len(seed) + 1))[: len(data)]
    assume(other != data)
    with pytest.raises(ChunkCorrupt):
        accept(encode_header(header, place) + other, place, header)


@given(st.binary(max_size=400), places)
def test_no_bytes_at_all_make_the_decoder_fall_over(noise: bytes, place: Place) -> None:
    with pytest.raises(BadRecord):
        decode_header(noise, place)


@given(st.integers(0, 3 * BLOCK_BYTES), st.binary(min_size=1, max_size=32))
def test_the_crc_of_the_whole_follows_from_the_crcs_of_the_blocks(size: int, seed: bytes) -> None:
    data = (seed * (size // len(seed) + 1))[:size]
    assert combined_crc(block_crcs(data), size) == crc32c(data)


def test_a_small_chunk_costs_at_most_48_bytes_and_its_block_crc() -> None:
    header = RecordHeader(
        RecordKind.CHUNK, ChunkKey(1, bytes(16), 0), 0, "rs-4-2", 64, block_crcs(bytes(64))
    )
    assert header.record_bytes - 64 - 4 == 46
    clay = RecordHeader(RecordKind.CHUNK, ChunkKey(1, bytes(16), 0), 0, "rs-10-4")
    assert clay.record_bytes <= 48


def test_a_newer_format_is_named() -> None:
    place = Place(bytes(16), 1, 0)
    record = bytearray(
        encode_header(RecordHeader(RecordKind.MARK, ChunkKey(0, bytes(16), 0)), place)
    )
    record[4] = 9
    with pytest.raises(BadRecord, match="format version 9"):
        decode_header(bytes(record), place)


def test_an_unknown_kind_with_a_good_crc_is_refused() -> None:
    place = Place(bytes(16), 1, 0)
    record = bytearray(
        encode_header(RecordHeader(RecordKind.MARK, ChunkKey(0, bytes(16), 0)), place)
    )
    record[5] = 77
    sealed = bytes(record[:36]) + struct.pack("<16sIQ", *place)
    record[36:40] = struct.pack("<I", crc32c(sealed))
    with pytest.raises(BadRecord, match="not of this format"):
        decode_header(bytes(record), place)


@pytest.mark.parametrize(
    ("key", "generation", "code", "size"),
    [
        (ChunkKey(-1, bytes(16), 0), 0, "rs-4-2", 1),
        (ChunkKey(0, bytes(15), 0), 0, "rs-4-2", 1),
        (ChunkKey(0, bytes(16), 255), 0, "rs-4-2", 1),
        (ChunkKey(0, bytes(16), 0), 2**32, "rs-4-2", 1),
        (ChunkKey(0, bytes(16), 0), 0, "x" * 256, 1),
        (ChunkKey(0, bytes(16), 0), 0, "rs-4-2", MAX_CHUNK_BYTES + 1),
    ],
)
def test_what_a_record_cannot_carry_is_refused(
    key: ChunkKey, generation: int, code: str, size: int
) -> None:
    with pytest.raises(InvalidChunk):
        check_key(key, generation, code, size)
