"""Small objects of a real cluster: packed while processes die, read with a node dead, left-overs
collected."""

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from tests.chaos.matrix import client_of
from tests.integration.conftest import LiveCluster, NewCluster, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

OBJECT_COUNT = 500


def body_of(key: str) -> bytes:
    """5 to 45 KB that belong to a key."""
    seed = hashlib.sha256(key.encode()).digest()
    return hashlib.shake_256(seed).digest(5_000 + int.from_bytes(seed[:2], "little") % 40_000)


def put_all(client: Any, bucket: str, keys: list[str]) -> list[str]:
    """Put the keys from several threads; those that were acknowledged."""

    def put(key: str) -> str | None:
        try:
            client.put_object(Bucket=bucket, Key=key, Body=body_of(key))
        except (ClientError, BotoCoreError):
            return None
        return key

    with ThreadPoolExecutor(8) as pool:
        return [key for key in pool.map(put, keys) if key is not None]


def check_all(client: Any, bucket: str, keys: list[str]) -> None:
    def is_right(key: str) -> bool:
        read: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return read == body_of(key)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, keys))


def end(pid: int) -> None:
    """kill -9 of a process that this test's cluster started."""
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    process.wait(10)


def packing(live: LiveCluster, *options: str) -> Any:
    result = live.run("cluster", "pack", "--json", *options)
    assert result.code == 0, result.out + result.err
    return result.json


def object_count(live: LiveCluster) -> int:
    found = packing(live)
    return int(found["waiting_objects"] + found["packed_objects"])


def test_small_objects_are_packed_whatever_dies_and_cost_what_the_code_says(
    new_cluster: NewCluster,
) -> None:
    live = new_cluster("--down-after-s", "1", "--trash-grace-s", "1")
    s3 = live.client()
    s3.create_bucket(Bucket="small")
    keys = [f"object/{number}" for number in range(OBJECT_COUNT)]
    kept = put_all(s3, "small", keys[:300])
    assert len(kept) == 300

    # The gateway dies while it writes, and the packer while it packs. Each is tried once: an object
    # that was committed, packed and then put again would leave a dead slice behind.
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(put_all, client_of(live, attempts=1), "small", keys[300:])
        wait_until(lambda: object_count(live) > 300, "writes go on")
        end(live.info["gateways"][0]["pid"])
        end(live.info["metadata"][0]["pid"])
        live.up_again()
        kept += rest.result()
    s3 = live.client()
    # What was not acknowledged may be there all the same: it is written under other names.
    kept += put_all(s3, "small", [f"{key}/again" for key in keys if key not in set(kept)])
    assert len(kept) == OBJECT_COUNT
    check_all(s3, "small", kept)

    # Everything that pays is packed; the copies go.
    def is_packed() -> bool:
        found = packing(live, "--apply")
        return bool(found["packed_objects"] and not found["waiting_objects"])

    wait_until(is_packed, "packed")
    found = packing(live)
    assert found["packed_objects"] >= len(kept)
    assert found["live_bytes"] >= sum(len(body_of(key)) for key in kept)
    assert found["stored_per_live_byte"] <= 1.15 * 6 / 4
    wait_until(lambda: live.status().trash_extent_count == 0, "the copies are deleted")
    # What was written and never committed, or packed and never referred to, is found and deleted.
    collected = live.run("cluster", "gc", "--apply", "--older-than-s", "1", "--json")
    assert collected.code == 0 and not collected.json["skipped_pgs"], collected.text
    again = live.run("cluster", "gc", "--older-than-s", "1", "--json")
    assert again.json["orphan_chunks"] == 0, again.json
    assert live.run("cluster", "scrub").code == 0
    assert "100% of what was packed" in live.run("cluster", "pack").text
    assert "nothing refers to 0 of them" in live.run("cluster", "gc").text
    check_all(s3, "small", kept)

    # With a node dead its objects are decoded; deleted ones make room.
    end(live.info["nodes"][2]["pid"])
    check_all(s3, "small", kept)
    live.up_again()
    wait_until(lambda: live.status().fully_redundant, "the node is back")
    for first in range(0, len(kept), 10):
        gone = [{"Key": key} for key in kept[first : first + 8]]
        s3.delete_objects(Bucket="small", Delete={"Objects": gone})
    left = [key for number, key in enumerate(kept) if number % 10 >= 8]

    def is_dense() -> bool:
        now = packing(live, "--apply")
        return not now["sparse_stripes"] and bool(now["stored_per_live_byte"] <= 1.15 * 6 / 4)

    wait_until(is_dense, "sparse stripes are packed anew")
    check_all(s3, "small", left)
    wait_until(lambda: live.status().trash_extent_count == 0, "the sparse stripes are deleted")
    assert live.run("cluster", "scrub").code == 0
