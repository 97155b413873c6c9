"""What stands between a verified request and its operation: who may do what, asked of `access`.

What a gateway knows of a bucket is trusted for `ttl_s`; a change made through it counts at
once, one made through another after that time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.access import BucketAccess, Facts, may
from exastore.gateway.s3.acl import ACL_HEADERS, ENFORCED
from exastore.gateway.s3.actions import EXTRA_ACTIONS, VERSIONED
from exastore.gateway.s3.attributes import MAX_KEY_BYTES, check_key, parse_copy_source
from exastore.gateway.s3.auth import Identity
from exastore.gateway.s3.facts import facts_of
from exastore.gateway.s3.identity import Kind, Principal
from exastore.gateway.s3.message import Request
from exastore.gateway.s3.routing import Route
from exastore.gateway.store import ObjectAttributes

#: Writes that may ask for a list of the object.
_WRITES_WITH_LISTS = frozenset({"PutObject", "CopyObject", "CreateMultipartUpload"})
#: A key with fewer characters has room for the longest of UTF-8.
_LONG_KEY_CHARACTERS = MAX_KEY_BYTES // 4
_COPIES = frozenset({"CopyObject", "UploadPartCopy"})

LoadObject = Callable[[], Awaitable[ObjectAttributes]]
LoadBucket = Callable[[str], Awaitable[BucketAccess]]
#: Bucket, key and version id of an object -> what decides about it.
LoadAttributes = Callable[[str, str, str | None], Awaitable[ObjectAttributes]]

#: Actions on objects that the bucket's owner may do, and let others do, whoever owns the object.
_DECIDED_BY_BUCKET = frozenset(
    {
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:DeleteObjectVersion",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    }
)


#: Puts an administrative act on record: actor, action, bucket, details.
RecordAct = Callable[[str, str, str, Mapping[str, str]], Awaitable[None]]


async def record_nothing(actor: str, action: str, target: str, details: Mapping[str, str]) -> None:
    """A `RecordAct` for who keeps no record."""


def denied() -> RequestError:
    """The refusal of what one may not do."""
    return RequestError("AccessDenied", "Access Denied")


class BucketCache:
    """What decides about buckets, remembered for a while."""

    def __init__(
        self,
        load: LoadBucket,
        *,
        ttl_s: float,
        monotonic_s: Callable[[], float],
        max_count: int = 10_000,
    ) -> None:
        self._load = load
        self._ttl_s = ttl_s
        self._monotonic_s = monotonic_s
        self._max_count = max_count
        #: Name -> (when asked, what was found), oldest first. Only buckets that exist.
        self._known: dict[str, tuple[float, BucketAccess]] = {}
        #: Look-ups under way, which all who ask meanwhile wait for.
        self._loading: dict[str, asyncio.Future[BucketAccess]] = {}
        #: Grows whenever something is forgotten, so that an older answer is not remembered.
        self._forgotten = 0

    def cached(self, name: str) -> BucketAccess | None:
        known = self._known.get(name)
        if known is None or self._monotonic_s() - known[0] > self._ttl_s:
            return None
        return known[1]

    def last_known(self, name: str) -> BucketAccess | None:
        """What was known last, however long ago."""
        known = self._known.get(name)
        return None if known is None else known[1]

    async def get(self, name: str) -> BucketAccess:
        """Raises RequestError: NoSuchBucket."""
        found = self.cached(name)
        if found is not None:
            return found
        loading = self._loading.get(name)
        if loading is None:
            loading = asyncio.ensure_future(self._look_up(name, self._forgotten))
            self._loading[name] = loading
            loading.add_done_callback(lambda done: self._end(name, done))
        # Shielded: one request that goes away does not take the answer from the others.
        return await asyncio.shield(loading)

    def _end(self, name: str, done: asyncio.Future[BucketAccess]) -> None:
        if self._loading.get(name) is done:
            del self._loading[name]
        if not done.cancelled():
            done.exception()  # Who still waits is told; nobody may be left.

    async def _look_up(self, name: str, forgotten: int) -> BucketAccess:
        asked_s = self._monotonic_s()
        found = await self._load(name)
        self._known.pop(name, None)
        if forgotten == self._forgotten:
            while len(self._known) >= self._max_count:
                del self._known[next(iter(self._known))]
            self._known[name] = (asked_s, found)
        return found

    def forget(self, name: str) -> None:
        """What was known of a bucket is no longer true."""
        self._known.pop(name, None)
        self._loading.pop(name, None)
        self._forgotten += 1


class Access:
    """What one request may do."""

    def __init__(
        self,
        request: Request,
        principal: Principal,
        identity: Identity,
        bucket: BucketAccess | None,
        now_s: float,
    ) -> None:
        self.request = request
        self.principal = principal
        #: None for the administrator, and where there is none yet.
        self.bucket = bucket
        self._identity = identity
        self._now_s = now_s
        #: What decides about the object, as it was looked up; None: nothing of it does.
        self._known: ObjectAttributes | None = None
        #: What was required of the object.
        self._action = ""
        self._key = ""
        self._facts: Facts | None = None
        #: For the source of a copy.
        self.source: Access | None = None

    def may(self, action: str, key: str = "", *, list_action: str = "") -> bool:
        """Whether an action may be done with the bucket, or with an object of it."""
        if self.principal.kind is Kind.ROOT:
            return True
        name = self.bucket.name if self.bucket is not None else self.request.bucket or "*"
        resource = f"{name}/{key}" if key else name
        known = self._known if key else None
        return may(
            self.principal,
            self.bucket,
            action,
            resource,
            self._gathered,
            known.acl if known is not None and self._asks_for_list else None,
            list_action=list_action,
        )

    def require(self, action: str, key: str = "") -> None:
        """Raises RequestError: AccessDenied."""
        if not self.may(action, key):
            raise denied()

    def require_delete(self, key: str, version_id: str | None) -> None:
        """As `require`, for one of a batch of keys, whose tags nobody looked up."""
        if self.asks_for_tags and self.principal.kind is not Kind.ROOT:
            raise RequestError(
                "AccessDenied", "A policy asks for the tags of objects: delete them one by one."
            )
        self.require("s3:DeleteObject" if version_id is None else "s3:DeleteObjectVersion", key)

    def require_list(self, key: str) -> None:
        """Raise AccessDenied unless a new object may get a list: who may write by one, may."""
        if not self.may("s3:PutObjectAcl", key, list_action="s3:PutObject"):
            raise denied()

    async def require_of_object(self, action: str, key: str, load: LoadObject) -> None:
        """As `require`, once it is known of the object what decides about it."""
        self._action, self._key = action, key
        if self.asks_for_tags or self._asks_for_list:
            self._known = await load()
            self._facts = None
        self.require(action, key)

    def confirm(self, found: ObjectAttributes) -> None:
        """Ask again if the object that was opened is another than the one that was looked up.

        Raises:
            RequestError: AccessDenied.
        """
        known = self._known
        if known is not None and (known.acl, known.tags) != (found.acl, found.tags):
            self._known, self._facts = found, None
            self.require(self._action, self._key)

    @property
    def _asks_for_list(self) -> bool:
        """Whether the list of the object counts."""
        has_lists = self.bucket is not None and self.bucket.ownership != ENFORCED
        return has_lists and self._action not in _DECIDED_BY_BUCKET

    @property
    def asks_for_tags(self) -> bool:
        """Whether a policy asks for the tags that the object has."""
        policies = (self.principal.policy, self.bucket.policy if self.bucket else None)
        return any(policy is not None and policy.asks_for_tags for policy in policies)

    def _gathered(self) -> Facts:
        if self._facts is None:
            owner = self.bucket.owner if self.bucket is not None else self.principal.tenant
            tags = {} if self._known is None else self._known.tags
            self._facts = facts_of(
                self.request, self.principal, self._identity, self._now_s, owner, tags
            )
        return self._facts


class Guard:
    """Decides about requests."""

    def __init__(self, buckets: BucketCache, load: LoadAttributes, record: RecordAct) -> None:
        self.buckets = buckets
        self.record = record
        self._load = load

    async def fresh_bucket(self, name: str) -> BucketAccess:
        """What the store has now: what was remembered may be older than another's change."""
        self.buckets.forget(name)
        return await self.buckets.get(name)

    async def admit(
        self, request: Request, route: Route, principal: Principal, identity: Identity, now_s: float
    ) -> Access:
        """What the request may do, once it may do what it asks for.

        Raises:
            RequestError: AccessDenied, NoSuchBucket.
        """
        name, operation = request.bucket, route.operation
        if len(request.key) > _LONG_KEY_CHARACTERS:
            check_key(request.key)
        if "x-amz-expected-bucket-owner" in request.headers and operation != "CreateBucket":
            await self._check_owner(name, request.headers["x-amz-expected-bucket-owner"])
        if "x-amz-source-expected-bucket-owner" in request.headers and operation in _COPIES:
            source = parse_copy_source(request.headers["x-amz-copy-source"]).bucket
            await self._check_owner(source, request.headers["x-amz-source-expected-bucket-owner"])
        if principal.kind is Kind.ROOT:
            return Access(request, principal, identity, None, now_s)
        if not name or operation == "CreateBucket":
            access = Access(request, principal, identity, None, now_s)
            access.require(route.action)
            return access
        bucket = self.buckets.cached(name) or await self.buckets.get(name)
        access = Access(request, principal, identity, bucket, now_s)
        if operation == "DeleteObjects":
            return access  # Decided key by key, by `Access.require_delete`.
        action, key = route.action, request.key
        version = request.query.get("versionId")
        if version is not None:
            action = VERSIONED.get(action, action)
        if not key:
            access.require(action)
            return access
        await access.require_of_object(action, key, lambda: self._load(name, key, version))
        self._require_more(access, request, operation)
        if operation in _COPIES:
            access.source = await self._admit_to_source(request, principal, identity, now_s)
        return access

    async def _check_owner(self, bucket: str, expected: str) -> None:
        """Refuse a request that takes a bucket for another tenant's than it is."""
        if (await self.buckets.get(bucket)).owner != expected:
            raise denied()

    def _require_more(self, access: Access, request: Request, operation: str) -> None:
        if operation in _WRITES_WITH_LISTS and not ACL_HEADERS.isdisjoint(request.headers):
            access.require_list(request.key)
        for header, action in EXTRA_ACTIONS.items():
            if header in request.headers:
                access.require(action, request.key)

    async def _admit_to_source(
        self, request: Request, principal: Principal, identity: Identity, now_s: float
    ) -> Access:
        """A copy reads its source: with the rights, and by the tags, that hold there."""
        source = parse_copy_source(request.headers.get("x-amz-copy-source", ""))
        bucket = await self.buckets.get(source.bucket)
        access = Access(request, principal, identity, bucket, now_s)
        named = "s3:GetObjectVersion" if source.version_id else "s3:GetObject"
        version = source.version_id or None
        await access.require_of_object(
            named, source.key, lambda: self._load(*source.place, version)
        )
        return access
