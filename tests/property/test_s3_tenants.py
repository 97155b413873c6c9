"""Two tenants and a stranger do anything at one gateway; a model says what each may see.

Every object and part has a token of its own in its bytes and in its metadata. No answer may hold a
token that its receiver may not read at that moment, whatever was asked for: by copies, policies,
lists, presigned URLs, forms or uploads of the other. And what may be done is done.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.support.s3_examples import form
from tests.support.s3_signer import Spec
from tests.support.s3_world import Answer, MemoryWorld, wire_of

from exastore.gateway.s3.acl import ANONYMOUS_OWNER

OWNERS = {"fuzz-acme": "ANN", "fuzz-evil": "EVE"}
TENANTS = {"ANN": "acme", "BOB": "acme", "EVE": "evil", "": ""}
TENANT_OF = {name: TENANTS[owner] for name, owner in OWNERS.items()}
ACTIONS = (
    *("GetObject", "PutObject", "DeleteObject", "ListBucket", "AbortMultipartUpload"),
    *("ListMultipartUploadParts", "ListBucketMultipartUploads", "GetObjectAttributes"),
    *("GetObjectAcl", "PutObjectAcl"),
)
#: What a statement may name: everybody, a tenant, a user.
PRINCIPALS = ("*", "acme", "evil", "arn:aws:iam::acme:user/bob", "arn:aws:iam::evil:user/eve")
#: Canned lists; "" asks for none.
LISTS = (
    *("", "", "private", "public-read", "authenticated-read"),
    *("bucket-owner-read", "bucket-owner-full-control"),
)
DESCRIPTIONS = ("attributes", "tagging", "acl", "retention", "legal-hold")
STEPS = ("part", "copy", "list", "abort", "complete")
DOCUMENTS = (
    *("policy", "acl", "cors", "tagging", "location", "versioning", "policyStatus"),
    *("ownershipControls", "lifecycle", "encryption", "website"),
)
OF_LISTS = ("ListBucket", "ListBucketMultipartUploads")

everybody = st.sampled_from(sorted(TENANTS))
buckets = st.sampled_from(sorted(OWNERS))
keys = st.sampled_from(["k0", "k1"])
places = st.tuples(buckets, keys)
statements = st.lists(
    st.tuples(
        st.sampled_from(["Allow", "Allow", "Deny"]),
        st.sampled_from([*PRINCIPALS, "*"]),
        st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4, unique=True),
    ),
    min_size=1,
    max_size=3,
)


@dataclass
class Upload:
    """An upload in progress."""

    bucket: str
    key: str
    upload_id: str
    token: str
    listed: "Listed"
    parts: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])
    """Number to (ETag, token)."""


@dataclass(frozen=True)
class Listed:
    """Whose an object is, and its canned list."""

    owner: str
    """A tenant; "-": nobody's."""
    canned: str = ""


@dataclass
class Rules:
    """What decides about a bucket."""

    policy: Sequence[tuple[str, str, Sequence[str]]] = ()
    is_public_list: bool = False
    is_closed: bool = False


def names(principal: str, who: str) -> bool:
    """Whether a statement's principal is the one who asks."""
    tenant = TENANTS[who]
    if principal == "*":
        return True
    return bool(who) and principal in (tenant, f"arn:aws:iam::{tenant}:user/{who.lower()}")


class Tenants(RuleBasedStateMachine):
    """The gateway, and the model of it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = MemoryWorld(self.runner)
        self.objects: dict[tuple[str, str], tuple[str, ...]] = {}
        """Tokens of each object's bytes and metadata."""
        self.lists: dict[tuple[str, str], Listed] = {}
        """Of the objects that there are, and of some that were."""
        self.uploads: list[Upload] = []
        self.governed = {name: Rules() for name in OWNERS}
        self.count = 0
        for name, owner in OWNERS.items():
            ownership = b"<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership>"
            ownership += b"</Rule></OwnershipControls>"
            assert self.ask(owner, Spec("PUT", f"/{name}")).status == 200
            spec = Spec("PUT", f"/{name}", {"ownershipControls": ""}, {}, ownership)
            assert self.ask(owner, spec).status == 200
            for key in ("k0", "k1"):
                self.put(owner, name, key, False, "")
                self.create_upload(owner, name, key, "")

    def teardown(self) -> None:
        self.runner.close()

    # ---- the model ----

    def may(self, who: str, action: str, bucket: str) -> bool:
        """Whether one may do something in a bucket."""
        rules, own = self.governed[bucket], TENANTS[who] == TENANT_OF[bucket]
        said = {
            effect
            for effect, named, actions in rules.policy
            if action in actions and names(named, who)
        }
        if "Deny" in said:
            return False
        if own:
            return True
        is_public = any(it[:2] == ("Allow", "*") for it in rules.policy)
        if "Allow" in said and not (rules.is_closed and is_public):
            return True
        return rules.is_public_list and not rules.is_closed and action in OF_LISTS

    def may_write(self, who: str, bucket: str, canned: str) -> bool:
        """Whether one may put an object, with a list of its own perhaps."""
        may_list = not canned or self.may(who, "PutObjectAcl", bucket)
        return self.may(who, "PutObject", bucket) and may_list

    def may_on(self, who: str, action: str, place: tuple[str, str]) -> bool:
        """Whether one may read or describe an object, which may be another's than its bucket."""
        if place not in self.objects:
            return self.may(who, action, place[0])
        listed, tenant, bucket = self.lists[place], TENANTS[who], place[0]
        rules = self.governed[bucket]
        if any(
            effect == "Deny" and action in actions and names(named, who)
            for effect, named, actions in rules.policy
        ):
            return False
        if tenant and tenant == listed.owner:
            return True
        if listed.owner == TENANT_OF[bucket] and self.may(who, action, bucket):
            return True
        match listed.canned:
            case "public-read":
                return action == "GetObject" and not rules.is_closed
            case "authenticated-read":
                return action == "GetObject" and bool(who) and not rules.is_closed
            case "bucket-owner-read":
                return action == "GetObject" and tenant == TENANT_OF[bucket]
            case "bucket-owner-full-control":
                reads = action in ("GetObject", "GetObjectAcl", "PutObjectAcl")
                return reads and tenant == TENANT_OF[bucket]
            case _:
                return False

    def keep(self, who: str, place: tuple[str, str], tokens: tuple[str, ...], canned: str) -> None:
        """An object was written."""
        self.objects[place] = tokens
        self.lists[place] = Listed(TENANTS[who] or "-", canned)

    def visible(self, who: str) -> set[str]:
        """The tokens that one may read now."""
        found: set[str] = set()
        for place, tokens in self.objects.items():
            if self.may_on(who, "GetObject", place):
                found.update(tokens)
        return found

    def ask(self, who: str, spec: Spec, *, presigned: bool = False) -> Answer:
        """Send a request, and look for tokens in the answer."""
        spec = replace(spec, access_key=who, expires="60" if presigned and who else None)
        answer = self.world.send(wire_of(self.world, spec))
        told = set(re.findall(r"token-\d+-", f"{answer.headers} {answer.body!r}"))
        assert told <= self.visible(who), (who, spec, answer)
        assert answer.status < 500, (who, spec, answer)
        if TENANTS[who] != "acme" and spec.path == "/":
            assert b"fuzz-acme" not in answer.body
        return answer

    def expect(self, answer: Answer, allowed: bool, status: int) -> None:
        """An answer is that of the model: done, or denied."""
        assert answer.status == (status if allowed else 403), answer

    def token(self) -> str:
        self.count += 1
        return f"token-{self.count}-"

    def missing(self, who: str, bucket: str) -> int:
        """How one is told that a key is not there."""
        return 404 if self.may(who, "ListBucket", bucket) else 403

    # ---- objects ----

    @rule(
        who=everybody,
        bucket=buckets,
        key=keys,
        presigned=st.booleans(),
        canned=st.sampled_from(LISTS),
    )
    def put(self, who: str, bucket: str, key: str, presigned: bool, canned: str) -> None:
        token, note = self.token(), self.token()
        headers = {"x-amz-meta-note": note, **({"x-amz-acl": canned} if canned else {})}
        spec = Spec("PUT", f"/{bucket}/{key}", {}, headers, token.encode())
        allowed = self.may_write(who, bucket, canned)
        if allowed:
            self.keep(who, (bucket, key), (token, note), canned)
        self.expect(self.ask(who, spec, presigned=presigned), allowed, 200)

    @rule(who=everybody, bucket=buckets, key=keys, presigned=st.booleans(), head=st.booleans())
    def get(self, who: str, bucket: str, key: str, presigned: bool, head: bool) -> None:
        spec = Spec("HEAD" if head else "GET", f"/{bucket}/{key}")
        answer = self.ask(who, spec, presigned=presigned)
        tokens = self.objects.get((bucket, key))
        status = 200 if tokens else self.missing(who, bucket)
        self.expect(answer, self.may_on(who, "GetObject", (bucket, key)), status)
        if answer.status == 200 and tokens and not head:
            assert answer.body.decode() == tokens[0]
            assert answer.headers.get("x-amz-meta-note", "") == "".join(tokens[1:])

    @rule(who=everybody, bucket=buckets, key=keys, what=st.sampled_from(DESCRIPTIONS))
    def describe(self, who: str, bucket: str, key: str, what: str) -> None:
        headers = {"x-amz-object-attributes": "ETag"}
        answer = self.ask(who, Spec("GET", f"/{bucket}/{key}", {what: ""}, headers))
        actions = {"attributes": "GetObjectAttributes", "acl": "GetObjectAcl"}
        if not self.may_on(who, actions.get(what, ""), (bucket, key)):
            assert answer.status == 403, answer
        elif what == "acl" and (bucket, key) in self.objects:
            owner = self.lists[bucket, key].owner
            shown = re.findall(rb"<ID>([^<]+)<", answer.body)[0].decode()
            assert shown == (owner if owner in TENANTS.values() else ANONYMOUS_OWNER), answer

    @rule(who=everybody, bucket=buckets, key=keys, canned=st.sampled_from(LISTS[2:]))
    def put_object_list(self, who: str, bucket: str, key: str, canned: str) -> None:
        spec = Spec("PUT", f"/{bucket}/{key}", {"acl": ""}, {"x-amz-acl": canned})
        allowed = self.may_on(who, "PutObjectAcl", (bucket, key))
        there = (bucket, key) in self.objects
        if allowed and there:
            self.lists[bucket, key] = replace(self.lists[bucket, key], canned=canned)
        self.expect(self.ask(who, spec), allowed, 200 if there else self.missing(who, bucket))

    @rule(who=everybody, bucket=buckets, key=keys)
    def delete(self, who: str, bucket: str, key: str) -> None:
        allowed = self.may(who, "DeleteObject", bucket)
        self.expect(self.ask(who, Spec("DELETE", f"/{bucket}/{key}")), allowed, 204)
        if allowed:
            self.objects.pop((bucket, key), None)

    @rule(who=everybody, bucket=buckets, key=keys)
    def delete_batch(self, who: str, bucket: str, key: str) -> None:
        body = f"<Delete><Object><Key>{key}</Key></Object></Delete>".encode()
        headers = {"content-md5": ""} if not who else {}
        answer = self.ask(who, Spec("POST", f"/{bucket}", {"delete": ""}, headers, body))
        if who and self.may(who, "DeleteObject", bucket):
            assert b"<Deleted>" in answer.body
            self.objects.pop((bucket, key), None)
        else:
            assert b"<Deleted>" not in answer.body

    @rule(who=everybody, source=places, goal=places, replaces=st.booleans())
    def copy(
        self, who: str, source: tuple[str, str], goal: tuple[str, str], replaces: bool
    ) -> None:
        (source_bucket, source_key), (bucket, key) = source, goal
        note = self.token()
        headers = {"x-amz-copy-source": f"{source_bucket}/{source_key}", "x-amz-meta-note": note}
        headers["x-amz-metadata-directive"] = "REPLACE" if replaces else "COPY"
        allowed = self.may(who, "PutObject", bucket) and self.may_on(who, "GetObject", source)
        tokens = self.objects.get(source)
        answer = self.ask(who, Spec("PUT", f"/{bucket}/{key}", {}, headers))
        if not allowed:
            assert answer.status == 403, answer
        elif tokens is None:
            assert answer.status in (403, 404), answer
        elif source == goal and not replaces:
            assert answer.status == 400, answer
        else:
            assert answer.status == 200, answer
            self.keep(who, goal, (tokens[0], note) if replaces else tokens, "")

    @rule(who=everybody, bucket=buckets, key=keys)
    def post(self, who: str, bucket: str, key: str) -> None:
        """An anonymous form: nobody's signature makes it more."""
        token = self.token()
        answer = self.ask("", form(Spec("POST", f"/{bucket}"), {"key": key}, token.encode()))
        allowed = self.may("", "PutObject", bucket)
        self.expect(answer, allowed, 204)
        if allowed:
            self.keep("", (bucket, key), (token,), "")

    # ---- lists ----

    @rule(who=everybody, bucket=buckets, kind=st.sampled_from(["", "list-type", "versions"]))
    def list_objects(self, who: str, bucket: str, kind: str) -> None:
        query = {kind: "2" if kind == "list-type" else ""} if kind else {}
        answer = self.ask(who, Spec("GET", f"/{bucket}", query))
        if kind == "versions":
            return  # Its own right, which no statement here gives: the tokens are what counts.
        self.expect(answer, self.may(who, "ListBucket", bucket), 200)
        if answer.status == 200:
            listed = re.findall(r"<Key>([^<]+)<", answer.body.decode())
            assert listed == sorted(key for name, key in self.objects if name == bucket)

    @rule(who=everybody, bucket=buckets)
    def list_uploads(self, who: str, bucket: str) -> None:
        answer = self.ask(who, Spec("GET", f"/{bucket}", {"uploads": ""}))
        self.expect(answer, self.may(who, "ListBucketMultipartUploads", bucket), 200)
        if answer.status == 200:
            listed = set(re.findall(r"<UploadId>([^<]+)<", answer.body.decode()))
            assert listed == {it.upload_id for it in self.uploads if it.bucket == bucket}

    @rule(who=everybody)
    def list_buckets(self, who: str) -> None:
        answer = self.ask(who, Spec("GET", "/"))
        if answer.status == 200:
            listed = {
                it for it in re.findall(r"<Name>([^<]+)<", answer.body.decode()) if it in OWNERS
            }
            assert listed == {it for it in OWNERS if TENANT_OF[it] == TENANTS[who]}

    # ---- uploads ----

    @rule(who=everybody, bucket=buckets, key=keys, canned=st.sampled_from(LISTS))
    def create_upload(self, who: str, bucket: str, key: str, canned: str) -> None:
        note = self.token()
        headers = {"x-amz-meta-note": note, **({"x-amz-acl": canned} if canned else {})}
        answer = self.ask(who, Spec("POST", f"/{bucket}/{key}", {"uploads": ""}, headers))
        self.expect(answer, self.may_write(who, bucket, canned), 200)
        if answer.status == 200:
            (upload_id,) = re.findall(r"<UploadId>([^<]+)<", answer.body.decode())
            listed = Listed(TENANTS[who] or "-", canned)
            self.uploads.append(Upload(bucket, key, upload_id, note, listed))

    @rule(who=everybody, data=st.data(), bucket=buckets, key=keys, what=st.sampled_from(STEPS))
    def use_upload(self, who: str, data: Any, bucket: str, key: str, what: str) -> None:
        """Do something to an upload, perhaps under another bucket's or key's name."""
        if not self.uploads:
            return
        upload = data.draw(st.sampled_from(self.uploads))
        match data.draw(st.sampled_from(["right", "another key", "another place"])):
            case "right":
                bucket, key = upload.bucket, upload.key
            case "another key":
                bucket = upload.bucket
            case _:
                pass
        fits = (bucket, key) == (upload.bucket, upload.key)
        path, query = f"/{bucket}/{key}", {"uploadId": upload.upload_id}
        match what:
            case "part":
                token = self.token()
                spec = Spec("PUT", path, {**query, "partNumber": "1"}, {}, token.encode())
                answer = self.ask(who, spec)
                self.expect(answer, self.may(who, "PutObject", bucket), 200 if fits else 404)
                if answer.status == 200:
                    upload.parts[1] = (answer.headers["etag"], token)
            case "copy":
                self._copy_part(who, upload, path, data, bucket, fits=fits)
            case "list":
                allowed = self.may(who, "ListMultipartUploadParts", bucket)
                self.expect(self.ask(who, Spec("GET", path, query)), allowed, 200 if fits else 404)
            case "abort":
                allowed = self.may(who, "AbortMultipartUpload", bucket)
                answer = self.ask(who, Spec("DELETE", path, query))
                self.expect(answer, allowed, 204 if fits else 404)
                if answer.status == 204:
                    self.uploads.remove(upload)
            case _:
                self._complete(who, upload, path, bucket, fits=fits)

    def _copy_part(
        self, who: str, upload: Upload, path: str, data: Any, bucket: str, *, fits: bool
    ) -> None:
        source, source_key = data.draw(buckets), data.draw(keys)
        query = {"uploadId": upload.upload_id, "partNumber": "1"}
        headers = {"x-amz-copy-source": f"{source}/{source_key}"}
        answer = self.ask(who, Spec("PUT", path, query, headers))
        place = (source, source_key)
        allowed = self.may(who, "PutObject", bucket) and self.may_on(who, "GetObject", place)
        tokens = self.objects.get(place)
        if not allowed:
            assert answer.status == 403, answer
        elif tokens is None or not fits:
            assert answer.status in (403, 404), answer
        else:
            (etag,) = re.findall(r"<ETag>([^<]+)<", answer.body.decode())
            upload.parts[1] = (etag, tokens[0])

    def _complete(self, who: str, upload: Upload, path: str, bucket: str, *, fits: bool) -> None:
        if not upload.parts:
            return
        etag, token = upload.parts[1]
        body = f"<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>"
        body = f"<CompleteMultipartUpload>{body}</CompleteMultipartUpload>"
        spec = Spec("POST", path, {"uploadId": upload.upload_id}, {}, body.encode())
        answer = self.ask(who, spec)
        self.expect(answer, self.may(who, "PutObject", bucket), 200 if fits else 404)
        if answer.status == 200:
            self.objects[upload.bucket, upload.key] = (token, upload.token)
            self.lists[upload.bucket, upload.key] = upload.listed
            self.uploads.remove(upload)

    # ---- rules of buckets ----

    @rule(who=everybody, bucket=buckets, policy=statements)
    def put_policy(
        self, who: str, bucket: str, policy: Sequence[tuple[str, str, Sequence[str]]]
    ) -> None:
        document = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": effect,
                    "Principal": named if named == "*" else {"AWS": named},
                    "Action": [f"s3:{action}" for action in actions],
                    "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                }
                for effect, named, actions in policy
            ],
        }
        body = json.dumps(document).encode()
        answer = self.ask(who, Spec("PUT", f"/{bucket}", {"policy": ""}, {}, body))
        own = TENANTS[who] == TENANT_OF[bucket]
        self.expect(answer, own, 204)
        if own:
            self.governed[bucket].policy = policy

    @rule(who=everybody, bucket=buckets)
    def delete_policy(self, who: str, bucket: str) -> None:
        own = TENANTS[who] == TENANT_OF[bucket]
        self.expect(self.ask(who, Spec("DELETE", f"/{bucket}", {"policy": ""})), own, 204)
        if own:
            self.governed[bucket].policy = ()

    @rule(who=everybody, bucket=buckets, is_public=st.booleans())
    def put_list(self, who: str, bucket: str, is_public: bool) -> None:
        headers = {"x-amz-acl": "public-read" if is_public else "private"}
        answer = self.ask(who, Spec("PUT", f"/{bucket}", {"acl": ""}, headers))
        own = TENANTS[who] == TENANT_OF[bucket]
        self.expect(answer, own, 200)
        if own:
            self.governed[bucket].is_public_list = is_public

    @rule(who=st.sampled_from(["ANN", "EVE"]), bucket=buckets, closes=st.booleans())
    def put_block(self, who: str, bucket: str, closes: bool) -> None:
        text = "true" if closes else "false"
        body = "".join(
            f"<{name}>{text}</{name}>" for name in ("IgnorePublicAcls", "RestrictPublicBuckets")
        )
        root = "PublicAccessBlockConfiguration"
        spec = Spec(
            "PUT", f"/{bucket}", {"publicAccessBlock": ""}, {}, f"<{root}>{body}</{root}>".encode()
        )
        own = TENANTS[who] == TENANT_OF[bucket]
        self.expect(self.ask(who, spec), own, 200)
        if own:
            self.governed[bucket].is_closed = closes

    @rule(who=everybody, bucket=buckets, what=st.sampled_from(DOCUMENTS))
    def read_rules(self, who: str, bucket: str, what: str) -> None:
        answer = self.ask(who, Spec("GET", f"/{bucket}", {what: ""}))
        if TENANTS[who] != TENANT_OF[bucket]:
            assert answer.status == 403, answer

    @rule(who=everybody, bucket=buckets)
    def take_bucket(self, who: str, bucket: str) -> None:
        """Make another's bucket, or delete it."""
        if TENANTS[who] == TENANT_OF[bucket]:
            return
        made = self.ask(who, Spec("PUT", f"/{bucket}"))
        assert made.status == (409 if who else 403), made
        assert self.ask(who, Spec("DELETE", f"/{bucket}")).status == 403

    @invariant()
    def owners_read_what_is_theirs(self) -> None:
        for (bucket, key), tokens in self.objects.items():
            for who in ("ANN", "EVE"):
                if self.may_on(who, "GetObject", (bucket, key)):
                    answer = self.ask(who, Spec("GET", f"/{bucket}/{key}"))
                    assert (answer.status, answer.body) == (200, tokens[0].encode())


TestTenants = Tenants.TestCase
TestTenants.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
