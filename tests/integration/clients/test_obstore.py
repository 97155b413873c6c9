"""obstore: the object_store crate, which most Rust data tools use."""

import urllib.request
from datetime import timedelta

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store
from tests.integration.clients.conftest import MIB, Bucket, some_bytes

pytestmark = pytest.mark.integration


def test_obstore_puts_conditionally_streams_lists_and_deletes(bucket: Bucket) -> None:
    store = S3Store(
        bucket.name,
        endpoint=bucket.endpoint,
        access_key_id=bucket.access_key,
        secret_access_key=bucket.secret_key,
        region="us-east-1",
        client_options={"allow_http": True},
    )
    large = some_bytes(23 * MIB + 7, 11)
    obstore.put(store, "large", large, chunk_size=5 * MIB)
    assert bucket.get("large") == large
    assert b"".join(bytes(piece) for piece in obstore.get(store, "large").stream()) == large
    ranges = obstore.get_ranges(store, "large", starts=[0, 9 * MIB], ends=[10, 9 * MIB + 10])
    assert [bytes(piece) for piece in ranges] == [large[:10], large[9 * MIB :][:10]]
    first = obstore.put(store, "lock", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "lock", b"2", mode="create")
    obstore.put(store, "lock", b"3", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(store, "lock", b"4", mode={"e_tag": first["e_tag"]})
    assert bucket.get("lock") == b"3"
    for number in range(30):
        obstore.put(store, f"many/{number:02d}", b"x", attributes={"color": "blue"})
    listed = [meta["path"] for batch in obstore.list(store, "many", chunk_size=7) for meta in batch]
    assert listed == [f"many/{number:02d}" for number in range(30)]
    assert obstore.list_with_delimiter(store)["common_prefixes"] == ["many"]
    assert obstore.get(store, "many/00").attributes["color"] == "blue"
    obstore.copy(store, "lock", "copied")
    obstore.rename(store, "copied", "renamed")
    obstore.delete(store, listed)
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "many/00")
    assert bucket.content == {"large": large, "lock": b"3", "renamed": b"3"}
    url = obstore.sign(store, "GET", "lock", expires_in=timedelta(minutes=1))
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"3"
