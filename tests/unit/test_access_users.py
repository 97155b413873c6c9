"""Users, traffic and the audit log, over the in-memory engine."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace.errors import (
    InvalidArgument,
    NamespaceError,
    NoSuchAccessKey,
    NoSuchUser,
    UserExists,
)
from exastore.metadata.service.audit import AuditLog
from exastore.metadata.service.errors import AuditFailed
from exastore.metadata.service.users import AccessService
from exastore.proto.v1 import access_pb2

NOW_S = 1_790_000_000.0
DAY = "2026-09-21"


class HandClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time_s = NOW_S

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        raise AssertionError("nothing sleeps here")


def key(key_id: str) -> access_pb2.AccessKey:
    return access_pb2.AccessKey(id=key_id, sealed_secret=b"sealed")


def create(name: str, tenant: str, *key_ids: str) -> access_pb2.CreateUserRequest:
    user = access_pb2.User(name=name, tenant=tenant, keys=[key(one) for one in key_ids])
    return access_pb2.CreateUserRequest(user=user)


def run(test: Callable[[AccessService, HandClock], Awaitable[None]], audit: str = "") -> None:
    async def main() -> None:
        engine, clock = MemoryEngine(), HandClock()
        try:
            await test(AccessService(engine, clock, AuditLog(audit, clock)), clock)
        finally:
            await engine.close()

    asyncio.run(main())


async def fails(call: Awaitable[Any], kind: type[NamespaceError]) -> None:
    with pytest.raises(kind):
        await call


def test_a_key_leads_to_its_user_until_it_is_rotated_or_the_user_goes() -> None:
    async def test(access: AccessService, clock: HandClock) -> None:
        await access.create_user(create("alice", "acme", "AK1"))
        found = await access.find_key(access_pb2.FindKeyRequest(id="AK1"))
        assert (found.name, found.tenant, found.created_s) == ("alice", "acme", NOW_S)
        both = access_pb2.ChangeUserRequest(name="alice", new_key=key("AK2"))
        await access.change_user(both)
        for key_id in ("AK1", "AK2"):
            found = await access.find_key(access_pb2.FindKeyRequest(id=key_id))
            assert [one.id for one in found.keys] == [key_id]
        await fails(
            access.change_user(access_pb2.ChangeUserRequest(name="alice", new_key=key("AK3"))),
            InvalidArgument,
        )
        rotate = access_pb2.ChangeUserRequest(
            name="alice", new_key=key("AK3"), drop_other_keys=True
        )
        for _ in range(2):  # A repeated request changes nothing more.
            changed = await access.change_user(rotate)
            assert [one.id for one in changed.keys] == ["AK3"]
        for key_id in ("AK1", "AK2"):
            await fails(access.find_key(access_pb2.FindKeyRequest(id=key_id)), NoSuchAccessKey)
        await access.delete_user(access_pb2.DeleteUserRequest(name="alice"))
        await fails(access.find_key(access_pb2.FindKeyRequest(id="AK3")), NoSuchAccessKey)
        await fails(access.get_user(access_pb2.GetUserRequest(name="alice")), NoSuchUser)

    run(test)


def test_users_and_keys_are_unique_and_a_repeated_creation_is_answered_again() -> None:
    async def test(access: AccessService, clock: HandClock) -> None:
        first = await access.create_user(create("alice", "acme", "AK1"))
        clock.time_s += 1
        assert await access.create_user(create("alice", "acme", "AK1")) == first
        await fails(access.create_user(create("alice", "acme", "AK9")), UserExists)
        await fails(access.create_user(create("alice", "other", "AK1")), UserExists)
        await fails(access.create_user(create("bob", "acme", "AK1")), UserExists)
        for name in ("", "a b", "ü", "x" * 65, "-a"):
            await fails(access.create_user(create(name, "acme", "AK2")), InvalidArgument)
        await fails(access.create_user(create("bob", "acme", "a/b")), InvalidArgument)

    run(test)


def test_users_are_listed_by_name_and_tenant_in_pages() -> None:
    async def test(access: AccessService, clock: HandClock) -> None:
        for number in range(5):
            await access.create_user(create(f"u{number}", f"t{number % 2}", f"AK{number}"))
        names: list[str] = []
        request = access_pb2.ListUsersRequest(tenant="t0", max_count=2)
        while True:
            page = await access.list_users(request)
            names += [user.name for user in page.users]
            if not page.next_start_after:
                break
            request.start_after = page.next_start_after
        assert names == ["u0", "u2", "u4"]

    run(test)


def test_a_disabled_user_is_found_as_disabled_and_a_policy_can_be_taken_away() -> None:
    async def test(access: AccessService, clock: HandClock) -> None:
        await access.create_user(create("alice", "acme", "AK1"))
        change = access_pb2.ChangeUserRequest(name="alice", disabled=True, policy="{}")
        await access.change_user(change)
        found = await access.find_key(access_pb2.FindKeyRequest(id="AK1"))
        assert found.disabled and found.policy == "{}"
        await access.change_user(access_pb2.ChangeUserRequest(name="alice", policy=""))
        found = await access.find_key(access_pb2.FindKeyRequest(id="AK1"))
        assert found.disabled and not found.policy

    run(test)


def test_a_batch_of_traffic_is_counted_once_however_often_it_comes() -> None:
    async def test(access: AccessService, clock: HandClock) -> None:
        item = access_pb2.Traffic(tenant="acme", received_bytes=10, sent_bytes=3)
        item.requests["read"] = 2
        batch = access_pb2.AddTrafficRequest(gateway_id="g1", sequence=1, traffic=[item])
        for _ in range(3):
            await access.add_traffic(batch)
        batch.sequence = 2
        await access.add_traffic(batch)
        batch.gateway_id, batch.sequence = "g2", 1
        await access.add_traffic(batch)
        clock.time_s += 86400
        batch.sequence = 2
        await access.add_traffic(batch)
        found = await access.get_traffic(access_pb2.GetTrafficRequest(tenant="acme"))
        assert [day.day for day in found.days] == [DAY, "2026-09-22"]
        assert [day.traffic.requests["read"] for day in found.days] == [6, 2]
        assert [day.traffic.received_bytes for day in found.days] == [30, 10]
        bounded = access_pb2.GetTrafficRequest(tenant="acme", first_day=DAY, last_day=DAY)
        assert [day.day for day in (await access.get_traffic(bounded)).days] == [DAY]
        other = await access.get_traffic(access_pb2.GetTrafficRequest(tenant="acm"))
        assert not other.days

    run(test)


def test_every_administrative_act_is_a_line_of_the_audit_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    async def test(access: AccessService, clock: HandClock) -> None:
        await access.create_user(create("alice", "acme", "AK1"))
        await access.change_user(access_pb2.ChangeUserRequest(name="alice", disabled=True))
        await access.delete_user(access_pb2.DeleteUserRequest(name="alice", actor="eve"))
        await fails(access.delete_user(access_pb2.DeleteUserRequest(name="alice")), NoSuchUser)
        await access.record_act(
            access_pb2.AuditEntry(
                actor="a", action="MoveBucket", target="b", details={"from": "eu", "to": "us"}
            )
        )

    run(test, str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["action"] for line in lines] == [
        "CreateUser",
        "ChangeUser",
        "DeleteUser",
        "MoveBucket",
    ]
    assert [line["actor"] for line in lines] == ["administrator", "administrator", "eve", "a"]
    assert lines[0]["time"] == "2026-09-21T14:13:20.000Z"
    assert lines[3]["from"] == "eu" and lines[3]["target"] == "b"
    assert b"sealed" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_audit_log_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    async def test(access: AccessService, clock: HandClock) -> None:
        with pytest.raises(AuditFailed):
            await access.create_user(create("alice", "acme", "AK1"))

    run(test, str(tmp_path))
