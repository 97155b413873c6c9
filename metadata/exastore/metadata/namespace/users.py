"""Users and their access keys: rows of the first engine.

    (user, name)                 User            with its keys; their secrets are sealed
    (key, id)                    name            which user a key belongs to

Laws:
1. A key belongs to one user, and a user has at most `KEY_COUNT_MAX` keys.
2. Both rows of a key appear and disappear in one transaction.
3. Secrets are never seen here: what is stored is sealed under a key that only gateways and the
   command line have.
"""

import re

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace.errors import (
    InvalidArgument,
    NoSuchAccessKey,
    NoSuchUser,
    UserExists,
)
from exastore.proto.v1 import access_pb2

KEY_COUNT_MAX = 2
POLICY_BYTES_MAX = 20 * 1024
USER_PAGE_MAX = 1000
_SEALED_BYTES_MAX = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+=,.@_-]{0,63}", re.ASCII)
_KEY_ID = re.compile(r"[A-Za-z0-9]{3,128}", re.ASCII)


def create_user(txn: Transaction, user: access_pb2.User, now_s: float) -> access_pb2.User:
    """Make a user; one that is there with the same keys is the answer to a repeated request.

    Raises InvalidArgument, UserExists.
    """
    for what, name in (("user", user.name), ("tenant", user.tenant)):
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"a {what}'s name has 1 to 64 of letters, digits and +=,.@_- and begins with a "
                f"letter or digit; {name!r} does not"
            )
    _check_policy(user.policy)
    known = txn.get(_user(user.name))
    if known is not None:
        there = access_pb2.User.FromString(known)
        if there.tenant == user.tenant and _ids(there) == _ids(user):
            return there
        raise UserExists(f"there is a user {user.name!r} already")
    stored = access_pb2.User()
    stored.CopyFrom(user)
    stored.created_s = now_s
    del stored.keys[:]
    for key in user.keys:
        _add_key(txn, stored, key, now_s)
    txn.put(_user(user.name), stored.SerializeToString())
    return stored


def get_user(txn: Transaction, name: str) -> access_pb2.User:
    """Raises NoSuchUser."""
    value = txn.get(_user(name))
    if value is None:
        raise NoSuchUser(name)
    return access_pb2.User.FromString(value)


def list_users(
    txn: Transaction, tenant: str, start_after: str, max_count: int
) -> access_pb2.ListUsersResponse:
    """Users by name, of one tenant or of all."""
    limit = min(max_count or USER_PAGE_MAX, USER_PAGE_MAX)
    begin, end = prefix_range(pack("user"))
    if start_after:
        begin = _user(start_after) + b"\x00"
    page = access_pb2.ListUsersResponse()
    for _, value in txn.scan(begin, end):
        user = access_pb2.User.FromString(value)
        if tenant and user.tenant != tenant:
            continue
        if len(page.users) == limit:
            page.next_start_after = page.users[-1].name
            break
        page.users.append(user)
    return page


def change_user(
    txn: Transaction, request: access_pb2.ChangeUserRequest, now_s: float
) -> access_pb2.User:
    """Disable or enable a user, change its policy, give it a key, seal one anew. Again is harmless.

    Raises NoSuchUser, UserExists (for the key), InvalidArgument.
    """
    user = get_user(txn, request.name)
    if request.HasField("disabled"):
        user.disabled = request.disabled
    if request.HasField("policy"):
        _check_policy(request.policy)
        user.policy = request.policy
    if request.drop_other_keys:
        kept = [key for key in user.keys if key.id == request.new_key.id]
        for key in user.keys:
            if key.id != request.new_key.id:
                txn.delete(_key(key.id))
        del user.keys[:]
        user.keys.extend(kept)
    for key in user.keys:
        if key.id == request.resealed_key.id:
            _check_sealed(request.resealed_key)
            key.sealed_secret = request.resealed_key.sealed_secret
    if request.new_key.id and request.new_key.id not in _ids(user):
        _add_key(txn, user, request.new_key, now_s)
    txn.put(_user(user.name), user.SerializeToString())
    return user


def delete_user(txn: Transaction, name: str) -> None:
    """Delete a user and its keys; its tenant's buckets stay. Raises NoSuchUser."""
    for key in get_user(txn, name).keys:
        txn.delete(_key(key.id))
    txn.delete(_user(name))


def find_key(txn: Transaction, key_id: str) -> access_pb2.User:
    """The user of a key, with that key alone. Raises NoSuchAccessKey."""
    name = txn.get(_key(key_id)) if _KEY_ID.fullmatch(key_id) else None
    if name is None:
        raise NoSuchAccessKey(key_id)
    user = get_user(txn, name.decode())
    kept = [key for key in user.keys if key.id == key_id]
    del user.keys[:]
    user.keys.extend(kept)
    return user


def _add_key(
    txn: Transaction, user: access_pb2.User, key: access_pb2.AccessKey, now_s: float
) -> None:
    if not _KEY_ID.fullmatch(key.id):
        raise InvalidArgument("the id of an access key has 3 to 128 letters and digits")
    _check_sealed(key)
    if len(user.keys) >= KEY_COUNT_MAX:
        raise InvalidArgument(
            f"user {user.name!r} has {KEY_COUNT_MAX} access keys, and may not have more"
        )
    if txn.get(_key(key.id)) is not None:
        raise UserExists("an access key of that id belongs to a user already")
    added = user.keys.add()
    added.CopyFrom(key)
    added.created_s = now_s
    txn.put(_key(key.id), user.name.encode())


def _check_sealed(key: access_pb2.AccessKey) -> None:
    if not 0 < len(key.sealed_secret) <= _SEALED_BYTES_MAX:
        raise InvalidArgument("the sealed secret of an access key is missing or too long")


def _check_policy(policy: str) -> None:
    if len(policy.encode()) > POLICY_BYTES_MAX:
        raise InvalidArgument(f"the policy of a user has at most {POLICY_BYTES_MAX} bytes")


def _ids(user: access_pb2.User) -> list[str]:
    return [key.id for key in user.keys]


def _user(name: str) -> bytes:
    return pack("user", name)


def _key(key_id: str) -> bytes:
    return pack("key", key_id)
