"""Chunks on the wire: the same messages as protobuf's, without its copies."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from exastore.proto.chunk_frames import ReadFrame, WriteFrame
from exastore.proto.v1 import common_pb2, storage_pb2


def write_header(request_id: int, code: str) -> storage_pb2.WriteChunkRequest:
    chunk = common_pb2.ChunkId(pg=7, stripe_id=bytes(16), index=3)
    return storage_pb2.WriteChunkRequest(
        request_id=request_id, device_index=2, chunk=chunk, code=code, epoch=300, crc32c=5
    )


@given(st.binary(max_size=400), st.integers(0, 2**64 - 1), st.text(max_size=200))
def test_a_write_frame_is_the_message_of_protobuf(data: bytes, number: int, code: str) -> None:
    header = write_header(number, code)
    raw = WriteFrame(header, data).encode()
    message = storage_pb2.WriteChunkRequest.FromString(raw)
    assert message.data == data
    plain = write_header(number, code)
    plain.data = data
    assert message == plain
    frame = WriteFrame.decode(plain.SerializeToString())
    assert bytes(frame.data) == data
    assert frame.header == header


@given(st.binary(max_size=400), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_a_read_frame_is_the_message_of_protobuf(data: bytes, number: int, crc: int) -> None:
    header = storage_pb2.ReadChunkResponse(request_id=number, crc32c=crc, message="m")
    frame = ReadFrame.decode(ReadFrame(header, memoryview(data)).encode())
    assert (bytes(frame.data), frame.request_id, frame.crc32c) == (data, number, crc)
    assert (frame.message, frame.status) == ("m", storage_pb2.CHUNK_STATUS_UNSPECIFIED)
    plain = storage_pb2.ReadChunkResponse.FromString(ReadFrame(header, data).encode())
    assert plain.data == data


def test_the_bytes_of_a_frame_are_a_view_of_the_message() -> None:
    raw = WriteFrame(write_header(1, "rs-4-2"), b"x" * 1000).encode()
    data = WriteFrame.decode(raw).data
    assert isinstance(data, memoryview)
    assert data.obj is raw


def test_fields_behind_the_bytes_are_read_as_well() -> None:
    raw = WriteFrame(write_header(1, "rs-4-2"), b"x" * 1000).encode()
    late = storage_pb2.WriteChunkRequest(request_id=9).SerializeToString()
    frame = WriteFrame.decode(raw + late)
    assert frame.header.request_id == 9
    assert bytes(frame.data) == b"x" * 1000
    # A field of a later version, of each wire type.
    for unknown in (b"\x78\x01", b"\x79" + bytes(8), b"\x7a\x01x", b"\x7d" + bytes(4)):
        assert bytes(WriteFrame.decode(unknown + raw).data) == b"x" * 1000


@pytest.mark.parametrize("cut_bytes", [1, 500, 1001])
def test_a_message_that_was_cut_off_is_refused(cut_bytes: int) -> None:
    raw = WriteFrame(write_header(1, "rs-4-2"), b"x" * 1000).encode()
    with pytest.raises(DecodeError):
        WriteFrame.decode(raw[:-cut_bytes])
