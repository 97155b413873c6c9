"""Who sends requests: the administrator, users of tenants, and anybody."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from exastore.gateway.s3.policy import Policy

#: The tenant of the administrator: owner of what is made with the launcher's credentials.
ROOT_TENANT = "exastore"


class Kind(Enum):
    """What sort of principal sends a request."""

    ROOT = "root"
    USER = "user"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request."""

    kind: Kind
    tenant: str = ""
    name: str = ""
    policy: Policy | None = None
    """What a user may do at most; None: all."""

    @property
    def arn(self) -> str:
        """Its name in policies; of the anonymous one, "*"."""
        match self.kind:
            case Kind.ROOT:
                return f"arn:aws:iam::{self.tenant}:root"
            case Kind.USER:
                return f"arn:aws:iam::{self.tenant}:user/{self.name}"
            case Kind.ANONYMOUS:
                return "*"


ROOT = Principal(Kind.ROOT, ROOT_TENANT)
ANONYMOUS = Principal(Kind.ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Credential:
    """The secret of an access key, and whose key it is."""

    secret_key: str
    principal: Principal


class KeySource(Protocol):
    """Finds access keys."""

    def cached(self, access_key: str) -> Credential | None:
        """What is known of a key without asking anybody."""
        ...

    async def find(self, access_key: str) -> Credential | None:
        """The key; None when there is none, or its user is disabled."""
        ...


class RootKey:
    """The administrator's key, and no other."""

    def __init__(self, access_key: str, secret_key: str) -> None:
        self._access_key = access_key
        self._credential = Credential(secret_key, ROOT)

    def cached(self, access_key: str) -> Credential | None:
        return self._credential if access_key == self._access_key else None

    async def find(self, access_key: str) -> Credential | None:
        return self.cached(access_key)


#: Looks a key up where users are kept; None: there is none.
LookUp = Callable[[str], Awaitable[Credential | None]]


class KeyCache:
    """The administrator's key, and those of users, looked up and trusted for a while.

    So a user that is disabled or deleted, or whose key is rotated, is refused everywhere after at
    most `ttl_s`. At most `max_count` keys are remembered, known and unknown ones.
    """

    def __init__(
        self,
        root: RootKey,
        look_up: LookUp,
        *,
        ttl_s: float,
        monotonic_s: Callable[[], float],
        max_count: int = 10_000,
    ) -> None:
        self._root = root
        self._look_up = look_up
        self._ttl_s = ttl_s
        self._monotonic_s = monotonic_s
        self._max_count = max_count
        #: Key -> (when looked up, what was found), oldest first.
        self._known: dict[str, tuple[float, Credential | None]] = {}

    def cached(self, access_key: str) -> Credential | None:
        root = self._root.cached(access_key)
        if root is not None:
            return root
        known = self._known.get(access_key)
        if known is None or self._monotonic_s() - known[0] > self._ttl_s:
            return None
        return known[1]

    async def find(self, access_key: str) -> Credential | None:
        root = self._root.cached(access_key)
        if root is not None:
            return root
        known = self._known.get(access_key)
        asked_s = self._monotonic_s()
        if known is not None and asked_s - known[0] <= self._ttl_s:
            return known[1]
        found = await self._look_up(access_key)
        self._known.pop(access_key, None)
        while len(self._known) >= self._max_count:
            del self._known[next(iter(self._known))]
        self._known[access_key] = (asked_s, found)
        return found
