"""`exastore user ...`: users of the S3 endpoint, their keys, and what their tenants use.

A secret is made here, shown once, and sealed under the cluster's master key before it is sent: the
metadata servers never see it. A gateway notices what is changed here after `key_ttl_s`, 5 s.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import grpc
import typer
from rich.table import Table

from exastore.deploy.cli.bucket import parsed_size
from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import binary_size, out, print_json
from exastore.deploy.errors import BadInput
from exastore.deploy.layout import ClusterPaths, metadata_addresses, read_cluster_file
from exastore.deploy.status import ask_channel
from exastore.proto.v1 import access_pb2, access_pb2_grpc, metadata_pb2, metadata_pb2_grpc

if TYPE_CHECKING:
    from exastore.gateway.master_key import MasterKey

app = typer.Typer(help="Users of the S3 endpoint, their keys and tenants.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of the user.", show_default=False)]
PolicyOption = Annotated[
    Path | None,
    typer.Option(help="JSON file of what the user may do; an empty file: all of its tenant."),
]

_TIMEOUT_S = 15.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class UserCalls:
    """What the commands ask the metadata servers of one cluster."""

    paths: ClusterPaths
    addresses: list[str]

    @classmethod
    def at(cls, directory: Path) -> "UserCalls":
        addresses = metadata_addresses(read_cluster_file(directory))
        return cls(ClusterPaths(directory.absolute()), addresses)

    def ask(self, call: Callable[[access_pb2_grpc.AccessServiceStub], Answer]) -> Answer:
        """A call of the service of users."""
        return self.ask_channel(lambda channel: call(access_pb2_grpc.AccessServiceStub(channel)))

    def ask_channel(self, call: Callable[[grpc.Channel], Answer]) -> Answer:
        return ask_channel(self.addresses, call)

    def users(self, tenant: str) -> list[access_pb2.User]:
        """All users, or those of a tenant."""
        found: list[access_pb2.User] = []
        request = access_pb2.ListUsersRequest(tenant=tenant)
        while True:
            page = self.ask(lambda stub: stub.ListUsers(request, timeout=_TIMEOUT_S))
            found += page.users
            if not page.next_start_after:
                return found
            request.start_after = page.next_start_after

    def tenant_usage(self, tenant: str) -> metadata_pb2.Usage:
        """What a tenant stores, and its quota."""
        request = metadata_pb2.GetUsageRequest(tenant=tenant)
        return self.ask_channel(
            lambda channel: metadata_pb2_grpc.MetadataServiceStub(channel).GetUsage(
                request, timeout=_TIMEOUT_S
            )
        )

    def change(self, request: access_pb2.ChangeUserRequest) -> access_pb2.User:
        return self.ask(lambda stub: stub.ChangeUser(request, timeout=_TIMEOUT_S))

    def reseal(self, master: "MasterKey") -> tuple[int, int]:
        """Seal all secrets by the newest master key: how many were not, and how many there are.

        Raises:
            MasterKeyError: One was sealed with a key that is not in the file.
        """
        from exastore.gateway.users import resealed

        keys = [(user.name, key) for user in self.users("") for key in user.keys]
        old = [(name, key) for name, key in keys if not master.is_newest(key.sealed_secret)]
        for name, key in old:
            self.change(access_pb2.ChangeUserRequest(name=name, resealed_key=resealed(master, key)))
        return len(old), len(keys)

    def new_key(self) -> tuple[access_pb2.AccessKey, str]:
        """A fresh access key with its secret sealed, and that secret.

        Raises:
            BadInput: The master key cannot be used.
        """
        from exastore.gateway.errors import MasterKeyError
        from exastore.gateway.master_key import read_master_key
        from exastore.gateway.users import purpose_of

        key_id, secret = "EXU" + secrets.token_hex(8).upper(), secrets.token_urlsafe(30)
        try:
            sealed = read_master_key(self.paths.master_key).seal(
                secret.encode(), purpose_of(key_id)
            )
        except MasterKeyError as error:
            raise BadInput(
                str(error), hint="run this where the cluster's directory is, as its owner"
            ) from error
        return access_pb2.AccessKey(id=key_id, sealed_secret=sealed), secret


@app.command()
def create(
    name: NameArgument,
    directory: DirOption = DEFAULT_DIR,
    tenant: Annotated[
        str, typer.Option(help="Who owns what the user makes.", show_default="the user's name")
    ] = "",
    policy: PolicyOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create a user with an access key, and show its secret: it cannot be shown again."""
    calls = UserCalls.at(directory)
    key, secret = calls.new_key()
    user = access_pb2.User(
        name=name, tenant=tenant or name, policy=_policy_text(policy), keys=[key]
    )
    request = access_pb2.CreateUserRequest(user=user)
    made = calls.ask(lambda stub: stub.CreateUser(request, timeout=_TIMEOUT_S))
    _print_secret(made, key.id, secret, json_output=json_output)


@app.command("list")
def list_command(
    directory: DirOption = DEFAULT_DIR,
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    json_output: JsonOption = False,
) -> None:
    """List users."""
    found = UserCalls.at(directory).users(tenant)
    if json_output:
        print_json([_user_json(user) for user in found])
        return
    table = Table()
    for column in ("user", "tenant", "access keys", "state", "may"):
        table.add_column(column, no_wrap=True)
    for user in found:
        table.add_row(
            user.name,
            user.tenant,
            ", ".join(key.id for key in user.keys),
            "disabled" if user.disabled else "active",
            "its policy" if user.policy else "all",
        )
    out.print(table)


@app.command()
def show(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Show a user, its keys and its policy."""
    request = access_pb2.GetUserRequest(name=name)
    user = UserCalls.at(directory).ask(lambda stub: stub.GetUser(request, timeout=_TIMEOUT_S))
    _print_user(user, json_output=json_output)


@app.command()
def rotate(
    name: NameArgument,
    directory: DirOption = DEFAULT_DIR,
    keep_old: Annotated[
        bool,
        typer.Option("--keep-old", help="Let the present key count until the next rotation."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Give a user a new access key; the old one ceases to count."""
    calls = UserCalls.at(directory)
    key, secret = calls.new_key()
    changed = calls.change(
        access_pb2.ChangeUserRequest(name=name, new_key=key, drop_other_keys=not keep_old)
    )
    _print_secret(changed, key.id, secret, json_output=json_output)


@app.command()
def disable(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Refuse a user's requests until it is enabled again."""
    changed = UserCalls.at(directory).change(access_pb2.ChangeUserRequest(name=name, disabled=True))
    _print_user(changed, json_output=json_output)


@app.command()
def enable(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Take a disabled user's requests again."""
    changed = UserCalls.at(directory).change(
        access_pb2.ChangeUserRequest(name=name, disabled=False)
    )
    _print_user(changed, json_output=json_output)


@app.command()
def policy(
    name: NameArgument,
    file: Annotated[
        Path, typer.Argument(help="JSON file; an empty one: all of its tenant.", show_default=False)
    ],
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Set what a user may do."""
    changed = UserCalls.at(directory).change(
        access_pb2.ChangeUserRequest(name=name, policy=_policy_text(file))
    )
    _print_user(changed, json_output=json_output)


@app.command()
def delete(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Delete a user and its keys. The buckets of its tenant stay."""
    request = access_pb2.DeleteUserRequest(name=name)
    UserCalls.at(directory).ask(lambda stub: stub.DeleteUser(request, timeout=_TIMEOUT_S))
    if json_output:
        print_json({"deleted": name})
    else:
        out.print(f"deleted {name}", markup=False)


@app.command()
def quota(
    tenant: Annotated[str, typer.Argument(help="Name of the tenant.", show_default=False)],
    directory: DirOption = DEFAULT_DIR,
    max_bytes: Annotated[
        str | None, typer.Option(help="Bytes of all its buckets, as 10GiB; 0: no limit.")
    ] = None,
    max_objects: Annotated[
        int | None, typer.Option(min=0, help="Objects of all its buckets; 0: no limit.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show or set what a tenant may store. For one bucket: `exastore bucket quota`."""
    calls = UserCalls.at(directory)
    used = calls.tenant_usage(tenant)
    if max_bytes is not None or max_objects is not None:
        wanted = metadata_pb2.Quota(
            max_bytes=used.quota.max_bytes if max_bytes is None else parsed_size(max_bytes),
            max_objects=used.quota.max_objects if max_objects is None else max_objects,
        )
        request = metadata_pb2.SetTenantQuotaRequest(tenant=tenant, quota=wanted)
        calls.ask_channel(
            lambda channel: metadata_pb2_grpc.MetadataServiceStub(channel).SetTenantQuota(
                request, timeout=_TIMEOUT_S
            )
        )
        entry = access_pb2.AuditEntry(
            action="SetTenantQuota",
            target=tenant,
            details={
                "max_bytes": str(wanted.max_bytes),
                "max_objects": str(wanted.max_objects),
            },
        )
        calls.ask(lambda stub: stub.RecordAct(entry, timeout=_TIMEOUT_S))
        used = calls.tenant_usage(tenant)
    value = {"tenant": tenant, **_quota_json(used)}
    if json_output:
        print_json(value)
    else:
        out.print(
            f"{tenant}: at most {_limit(used.quota.max_bytes, binary_size)}, "
            f"{_limit(used.quota.max_objects, lambda n: f'{n:,} objects')}",
            markup=False,
        )


@app.command()
def usage(
    directory: DirOption = DEFAULT_DIR,
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    first_day: Annotated[str, typer.Option("--from", help="First day, as 2026-11-24, UTC.")] = "",
    last_day: Annotated[str, typer.Option("--to", help="Last day.")] = "",
    json_output: JsonOption = False,
) -> None:
    """What tenants store and did: bytes, objects, requests by kind, bytes in and out."""
    calls = UserCalls.at(directory)
    tenants = [tenant] if tenant else _tenants(calls)
    values = [_usage_json(calls, name, first_day, last_day) for name in tenants]
    if json_output:
        print_json(values)
        return
    table = Table()
    for column in ("tenant", "stored", "objects", "in", "out", "requests"):
        table.add_column(column, no_wrap=True, justify="left" if column == "tenant" else "right")
    for value in values:
        table.add_row(
            value["tenant"],
            binary_size(value["stored_bytes"]),
            f"{value['objects']:,}",
            binary_size(value["received_bytes"]),
            binary_size(value["sent_bytes"]),
            ", ".join(f"{count:,} {kind}" for kind, count in value["requests"].items()),
        )
    out.print(table)


def _tenants(calls: UserCalls) -> list[str]:
    """Those that have users or buckets."""
    buckets = calls.ask_channel(
        lambda channel: metadata_pb2_grpc.MetadataServiceStub(channel).ListBuckets(
            metadata_pb2.ListBucketsRequest(), timeout=_TIMEOUT_S
        )
    ).buckets
    return sorted({user.tenant for user in calls.users("")} | {b.owner for b in buckets})


def _usage_json(calls: UserCalls, tenant: str, first_day: str, last_day: str) -> dict[str, Any]:
    used = calls.tenant_usage(tenant)
    request = access_pb2.GetTrafficRequest(tenant=tenant, first_day=first_day, last_day=last_day)
    days = calls.ask(lambda stub: stub.GetTraffic(request, timeout=_TIMEOUT_S)).days
    return {
        "tenant": tenant,
        "stored_bytes": used.object_bytes + used.part_bytes,
        "objects": used.object_count,
        **_quota_json(used),
        **_traffic_json([day.traffic for day in days]),
        "days": [{"day": day.day, **_traffic_json([day.traffic])} for day in days],
    }


def _traffic_json(items: Sequence[access_pb2.Traffic]) -> dict[str, Any]:
    kinds = sorted({kind for item in items for kind in item.requests})
    return {
        "requests": {kind: sum(item.requests.get(kind, 0) for item in items) for kind in kinds},
        "received_bytes": sum(item.received_bytes for item in items),
        "sent_bytes": sum(item.sent_bytes for item in items),
    }


def _quota_json(used: metadata_pb2.Usage) -> dict[str, int]:
    return {"max_bytes": used.quota.max_bytes, "max_objects": used.quota.max_objects}


def _limit(limit: int, text: Callable[[int], str]) -> str:
    return text(limit) if limit else "no limit"


def _policy_text(path: Path | None) -> str:
    """A policy that is known to be one.

    Raises:
        BadInput: The file cannot be read, or holds no policy.
    """
    if path is None:
        return ""
    from exastore.gateway.errors import RequestError
    from exastore.gateway.s3.policy import parse_user_policy

    try:
        text = path.read_text(encoding="utf-8").strip()
        if text:
            parse_user_policy(text.encode())
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    except RequestError as error:
        raise BadInput(f"{path} is no policy of a user: {error.message}") from error
    return text


def _user_json(user: access_pb2.User) -> dict[str, Any]:
    return {
        "name": user.name,
        "tenant": user.tenant,
        "created_s": user.created_s,
        "disabled": user.disabled,
        "policy": user.policy,
        "access_keys": [{"id": key.id, "created_s": key.created_s} for key in user.keys],
    }


def _print_user(user: access_pb2.User, *, json_output: bool) -> None:
    if json_output:
        print_json(_user_json(user))
        return
    state = "disabled" if user.disabled else "active"
    out.print(f"user {user.name} of tenant {user.tenant}: {state}", markup=False)
    for key in user.keys:
        out.print(f"  access key   {key.id}", markup=False)
    if user.policy:
        out.print(f"  policy       {user.policy}", markup=False, soft_wrap=True)


def _print_secret(user: access_pb2.User, key_id: str, secret: str, *, json_output: bool) -> None:
    if json_output:
        print_json({**_user_json(user), "access_key": key_id, "secret_key": secret})
        return
    out.print(f"user {user.name} of tenant {user.tenant}", markup=False)
    out.print(f"  access key   {key_id}", markup=False, soft_wrap=True)
    out.print(f"  secret key   {secret}", markup=False, soft_wrap=True)
    out.print("the secret key is not kept in readable form: it cannot be shown again")
