"""What gateways remember, seal and count: keys, buckets, secrets, traffic; and forms in pieces."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exastore.gateway.errors import MasterKeyError, MetadataUnavailable, RequestError
from exastore.gateway.master_key import MasterKey, new_key_line, read_master_key
from exastore.gateway.s3.access import BucketAccess
from exastore.gateway.s3.forms import FormReader, boundary_of
from exastore.gateway.s3.guard import BucketCache
from exastore.gateway.s3.identity import ROOT, Credential, KeyCache, Kind, Principal, RootKey
from exastore.gateway.traffic import TENANTS_PER_BATCH, TrafficMeter
from exastore.proto.v1 import access_pb2

ANN = Credential("secret", Principal(Kind.USER, "acme", "ann"))


class HandClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        raise AssertionError("nothing sleeps here")


# ---- keys ----


def test_keys_are_trusted_for_a_while_and_no_longer() -> None:
    async def main() -> None:
        clock, asked = HandClock(), list[str]()
        users: dict[str, Credential] = {"ANN": ANN}

        async def look_up(access_key: str) -> Credential | None:
            asked.append(access_key)
            return users.get(access_key)

        keys = KeyCache(
            RootKey("root", "s"), look_up, ttl_s=5, monotonic_s=clock.monotonic_s, max_count=2
        )
        assert keys.cached("ANN") is None and await keys.find("ANN") == ANN
        del users["ANN"]
        clock.time_s += 5
        assert keys.cached("ANN") == ANN and await keys.find("ANN") == ANN
        clock.time_s += 0.1
        assert keys.cached("ANN") is None and await keys.find("ANN") is None
        users["ANN"] = ANN
        assert await keys.find("ANN") is None, "that there is none is remembered, too"
        assert asked == ["ANN", "ANN"]
        for name in ("B", "C", "D"):
            await keys.find(name)
        assert asked[2:] == ["B", "C", "D"]
        await keys.find("D")
        assert await keys.find("ANN") == ANN, "it made room for others"
        found = await keys.find("root")
        assert found is not None and found.principal == ROOT and asked[5:] == ["ANN"]

    asyncio.run(main())


def test_an_answer_that_is_older_than_a_change_is_not_remembered() -> None:
    async def main() -> None:
        clock, owners = HandClock(), ["old", "new"]
        release = asyncio.Event()

        async def load(name: str) -> BucketAccess:
            owner = owners.pop(0)
            await release.wait()
            return BucketAccess(name, owner)

        cache = BucketCache(load, ttl_s=1, monotonic_s=clock.monotonic_s, max_count=2)
        early = asyncio.create_task(cache.get("b"))
        await asyncio.sleep(0)
        cache.forget("b")
        release.set()
        assert (await early).owner == "old"
        assert cache.cached("b") is None
        assert (await cache.get("b")).owner == "new"
        assert cache.cached("b") is not None
        clock.time_s += 1.1
        assert cache.cached("b") is None

    asyncio.run(main())


def test_requests_at_the_same_time_ask_once_and_all_are_answered() -> None:
    async def main() -> None:
        asked: list[str] = []
        release = asyncio.Event()

        async def load(name: str) -> BucketAccess:
            asked.append(name)
            await release.wait()
            if name == "gone":
                raise RequestError("NoSuchBucket", "The specified bucket does not exist")
            return BucketAccess(name, "acme")

        cache = BucketCache(load, ttl_s=1, monotonic_s=HandClock().monotonic_s)
        tasks = [asyncio.create_task(cache.get(name)) for name in ("b", "b", "b", "gone", "gone")]
        await asyncio.sleep(0)
        tasks[0].cancel()
        release.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert asked == ["b", "gone"]
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1] == found[2] == BucketAccess("b", "acme")
        assert all(isinstance(error, RequestError) for error in found[3:])
        assert cache.cached("b") is not None and cache.cached("gone") is None

    asyncio.run(main())


# ---- the master key ----


def test_what_is_sealed_opens_with_its_key_and_for_its_purpose_alone(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    old = new_key_line()
    path.write_text(old)
    path.chmod(0o600)
    key = read_master_key(path)
    sealed = key.seal(b"secret", "access key A")
    assert b"secret" not in sealed and key.seal(b"secret", "access key A") != sealed
    assert key.open(sealed, "access key A") == b"secret"
    path.write_text(new_key_line() + old)
    rotated = read_master_key(path)
    assert rotated.open(sealed, "access key A") == b"secret", "the older key still opens"
    assert not rotated.is_newest(sealed)
    assert rotated.is_newest(rotated.seal(b"s", "p"))
    assert key.open(rotated.seal(b"s", "p"), "p") == b"s", "what it did not know, it reads again"
    with pytest.raises(MasterKeyError, match="not in the file"):
        key.open(MasterKey({b"other-id": bytes(32)}).seal(b"s", "p"), "p")
    for wrong, purpose in (
        (sealed, "access key B"),
        (sealed[:-1] + bytes((sealed[-1] ^ 1,)), "access key A"),
        (sealed[:-1], "access key A"),
        (sealed[:10], "access key A"),
        (b"", "access key A"),
    ):
        with pytest.raises(MasterKeyError):
            key.open(wrong, purpose)


@pytest.mark.parametrize("text", ["", "x", "00 AAAA", "zz " + "A" * 44, new_key_line()[:-3]])
def test_a_file_that_is_no_master_key_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "master.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(MasterKeyError, match=r"no key|is no key"):
        read_master_key(path)


def test_a_master_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    with pytest.raises(MasterKeyError, match="cannot be read"):
        read_master_key(path)
    path.write_text(new_key_line())
    path.chmod(0o640)
    with pytest.raises(MasterKeyError, match="chmod 600"):
        read_master_key(path)


def test_no_nonce_comes_twice() -> None:
    given_out: list[bytes] = []

    def new_nonce(size: int) -> bytes:
        given_out.append(os.urandom(size))
        return given_out[-1]

    key = MasterKey({bytes(8): bytes(32)}, new_nonce)
    for _ in range(100):
        key.seal(b"", "p")
    assert len(set(given_out)) == 100


# ---- traffic ----


def metered(
    test: Callable[[TrafficMeter, list[access_pb2.AddTrafficRequest], list[bool]], Awaitable[None]],
) -> None:
    async def main() -> None:
        sent: list[access_pb2.AddTrafficRequest] = []
        fails: list[bool] = []

        async def send(batch: access_pb2.AddTrafficRequest) -> None:
            copy = access_pb2.AddTrafficRequest()
            copy.CopyFrom(batch)
            sent.append(copy)
            if fails and fails.pop(0):
                raise MetadataUnavailable("away")

        await test(TrafficMeter(send, clock=HandClock(), flush_s=1), sent, fails)

    asyncio.run(main())


def test_an_unanswered_batch_is_sent_again_under_its_number_and_unchanged() -> None:
    async def test(
        meter: TrafficMeter, sent: list[access_pb2.AddTrafficRequest], fails: list[bool]
    ) -> None:
        meter.count("acme", "read", 1, 10)
        fails[:] = [True]
        await meter.flush()
        meter.count("acme", "read", 2, 20)
        await meter.flush()
        assert [batch.sequence for batch in sent] == [1, 1, 2]
        assert sent[0] == sent[1], "what is counted since is in the next batch"
        assert [batch.traffic[0].sent_bytes for batch in sent] == [10, 10, 20]
        await meter.flush()
        assert len(sent) == 3, "nothing to tell"

    metered(test)


def test_many_tenants_take_several_batches() -> None:
    async def test(
        meter: TrafficMeter, sent: list[access_pb2.AddTrafficRequest], fails: list[bool]
    ) -> None:
        for number in range(TENANTS_PER_BATCH + 1):
            meter.count(f"t{number}", "write", 1, 0)
        meter.count("t0", "list", 0, 5)
        await meter.stop()
        assert [len(batch.traffic) for batch in sent] == [TENANTS_PER_BATCH, 1]
        assert dict(sent[0].traffic[0].requests) == {"write": 1, "list": 1}

    metered(test)


# ---- forms ----


class Pieces:
    """A stream that gives its bytes in pieces of a size."""

    def __init__(self, data: bytes, piece_bytes: int) -> None:
        self._data = data
        self._piece_bytes = piece_bytes
        self.started = False

    async def read(self) -> bytes | None:
        self.started = True
        piece, self._data = self._data[: self._piece_bytes], self._data[self._piece_bytes :]
        return piece or None


FORM = (
    b"preamble\r\n--B\r\n"
    b'Content-Disposition: form-data; name="key"\r\n\r\n'
    b"a/b\r\n--B\r\n"
    b'content-disposition: form-data; name="File"; filename="x \\"y\\".txt"\r\n'
    b"Content-Type: text/plain\r\n\r\n"
)


async def read_form(data: bytes, piece_bytes: int) -> tuple[dict[str, str], bytes, FormReader]:
    form = FormReader(Pieces(data, piece_bytes), b"B")
    fields = await form.fields()
    pieces: list[bytes] = []
    while (piece := await form.read()) is not None:
        pieces.append(piece)
    return fields, b"".join(pieces), form


@given(
    st.lists(st.sampled_from([b"\r\n", b"--", b"B", b"\r\n--", b"x"]), max_size=30).map(b"".join),
    st.integers(1, 50),
)
def test_a_file_arrives_whole_however_it_is_cut(data: bytes, piece_bytes: int) -> None:
    if b"\r\n--B" in data or data.endswith((b"\r\n--", b"\r\n-", b"\r\n", b"\r")):
        data = data.replace(b"\r\n--B", b"") + b"x"
        if b"\r\n--B" in data:
            return
    end = b"\r\n--B--\r\nepilogue"
    fields, found, form = asyncio.run(read_form(FORM + data + end, piece_bytes))
    assert fields == {"key": "a/b"}
    assert found == data
    assert (form.file_name, form.file_type) == ('x "y".txt', "text/plain")


@given(st.binary(max_size=300), st.integers(1, 40), st.integers(0, 60))
def test_no_bytes_break_the_reader_of_forms(data: bytes, piece_bytes: int, cut: int) -> None:
    for body in (data, FORM[:cut] + data, FORM + data):
        try:
            asyncio.run(read_form(body, piece_bytes))
        except RequestError as error:
            assert error.code in {
                "IncompleteBody",
                "InvalidArgument",
                "MalformedPOSTRequest",
                "MaxPostPreDataLengthExceeded",
            }


def test_boundaries_are_read_as_clients_write_them() -> None:
    assert boundary_of("multipart/form-data; boundary=abc") == b"abc"
    assert boundary_of('multipart/form-data; charset=x; BOUNDARY="a b"') == b"a b"
    with pytest.raises(RequestError, match="MalformedPOSTRequest"):
        boundary_of("multipart/form-data")
