"""PostObject: an upload by a form, which a signed policy permits.

The form becomes the PUT that it stands for, so that all rules of PutObject hold. Its conditions are
checked before the first byte of the file is read, but for the length, which is checked while it
arrives.
"""

import base64
import binascii
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.auth import (
    ALGORITHM,
    UNSIGNED_PAYLOAD,
    Identity,
    Scope,
    parse_credential,
    sign,
    signing_key,
)
from exastore.gateway.s3.body import MAX_PUT_BYTES, RequestBody, read_promise
from exastore.gateway.s3.checksums import DEFAULT_ALGORITHM
from exastore.gateway.s3.context import Call
from exastore.gateway.s3.forms import FormReader, boundary_of
from exastore.gateway.s3.identity import ANONYMOUS, Credential, Principal
from exastore.gateway.s3.message import Request, Response, is_header_text

_UNSIGNED_FIELDS = {"x-amz-signature", "file", "policy", "awsaccesskeyid", "signature"}
#: Fields that are headers of the PUT; so are those that begin with x-amz-.
_HEADER_FIELDS = {
    "cache-control",
    "content-type",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
}
#: Headers of the form itself that the PUT has, too.
_KEPT_HEADERS = ("host", "user-agent", "referer", "origin")
_NOT_HEADERS = {"x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"}

Find = Callable[[str], Awaitable[Credential | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostCall(Call):
    """The PUT that a form stands for."""

    form: FormReader
    min_bytes: int
    max_bytes: int

    def body(self, default_checksum: str = DEFAULT_ALGORITHM) -> RequestBody:
        return _FormBody(self, default_checksum)


class _FormBody(RequestBody):
    """The file of a form. Its length is not known before its end."""

    def __init__(self, call: PostCall, default_checksum: str) -> None:
        headers = {**call.request.headers, "content-length": str(MAX_PUT_BYTES)}
        promise = read_promise(headers, UNSIGNED_PAYLOAD)
        super().__init__(
            _Limited(call.form, call.max_bytes),
            promise,
            call.identity,
            count=call.count_received,
            default_checksum=default_checksum,
        )
        self._min_bytes = call.min_bytes

    def finish(self) -> Mapping[str, str]:
        if self._ended:
            if self._received_bytes < self._min_bytes:
                raise RequestError(
                    "EntityTooSmall",
                    "Your proposed upload is smaller than the minimum allowed size",
                )
            self._promise = replace(self._promise, length_bytes=self._received_bytes)
        return RequestBody.finish(self)


class _Limited:
    """A form's file, of so many bytes at most."""

    def __init__(self, form: FormReader, max_bytes: int) -> None:
        self._form = form
        self._left_bytes = max_bytes

    @property
    def started(self) -> bool:
        return self._form.started

    async def read(self) -> bytes | None:
        piece = await self._form.read()
        self._left_bytes -= len(piece or b"")
        if self._left_bytes < 0:
            raise RequestError(
                "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size"
            )
        return piece


@dataclass(slots=True)
class Upload:
    """A form whose policy holds."""

    request: Request
    """The PUT that it stands for."""
    principal: Principal
    identity: Identity
    form: FormReader
    fields: dict[str, str]
    min_bytes: int = 0
    max_bytes: int = MAX_PUT_BYTES

    def call(self, call: Call) -> PostCall:
        """The call of the PUT, with the form's file as its body."""
        given: dict[str, Any] = {item.name: getattr(call, item.name) for item in fields(call)}
        return PostCall(**given, form=self.form, min_bytes=self.min_bytes, max_bytes=self.max_bytes)

    def answer(self, done: Response) -> Response:
        """What the form asked to be answered with, once the PUT is done."""
        etag, key, bucket = done.headers.get("ETag", ""), self.request.key, self.request.bucket
        headers = dict(done.headers)
        headers["Location"] = f"/{bucket}/{quote(key)}"
        target = self.fields.get("success_action_redirect") or self.fields.get("redirect", "")
        if is_header_text(target) and urlsplit(target).scheme in ("http", "https"):
            query = urlencode({"bucket": bucket, "key": key, "etag": etag})
            joint = "&" if urlsplit(target).query else "?"
            headers["Location"] = f"{target}{joint}{query}".encode().decode("latin-1")
            return Response(303, headers)
        status = self.fields.get("success_action_status", "204")
        if status == "201":
            root = xml.document("PostResponse")
            for name, text in (
                ("Location", headers["Location"]),
                ("Bucket", bucket),
                ("Key", key),
                ("ETag", etag),
            ):
                xml.add(root, name, text)
            headers["Content-Type"] = "application/xml"
            return Response(201, headers, xml.render(root))
        return Response(200 if status == "200" else 204, headers)


async def read_upload(request: Request, find: Find, now_s: float) -> Upload:
    """Read a form up to its file, and check its signature and policy.

    Raises:
        RequestError: Whatever is wrong with it.
    """
    form = FormReader(request.stream, boundary_of(request.headers.get("content-type", "")))
    fields = await form.fields()
    key = fields.get("key", "")
    if not key:
        raise RequestError("InvalidArgument", "Bucket POST must contain a field named 'key'.")
    key = key.replace("${filename}", form.file_name.replace("\\", "/").rpartition("/")[2])
    principal, identity = ANONYMOUS, Identity("", UNSIGNED_PAYLOAD, b"", Scope("", "", ""), "", "")
    put = replace(
        request,
        method="PUT",
        key=key,
        headers=_headers(request.headers, fields),
        stream=form,
        query={},
    )
    upload = Upload(put, principal, identity, form, fields)
    if "policy" in fields or "x-amz-signature" in fields or "signature" in fields:
        upload.principal, upload.identity = await _identify(fields, find)
        _check_policy(upload, now_s)
    return upload


def _headers(headers: Mapping[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    kept = {name: headers[name] for name in _KEPT_HEADERS if name in headers}
    for name, value in fields.items():
        if name in _HEADER_FIELDS or (name.startswith("x-amz-") and name not in _NOT_HEADERS):
            if not is_header_text(value):
                raise RequestError("InvalidArgument", f"The field {name} is no header value.")
            # As a header would have come.
            kept[name] = value.encode().decode("latin-1")
    if "acl" in fields:
        kept["x-amz-acl"] = fields["acl"]
    if "tagging" in fields:
        root = xml.parse_document(fields["tagging"].encode(), "Tagging")
        pairs = [(tag.findtext("Key", ""), tag.findtext("Value", "")) for tag in root.iter("Tag")]
        kept["x-amz-tagging"] = urlencode(pairs)
    return kept


async def _identify(fields: Mapping[str, str], find: Find) -> tuple[Principal, Identity]:
    if "signature" in fields or "awsaccesskeyid" in fields:
        raise RequestError(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. "
            "Please use AWS4-HMAC-SHA256.",
        )
    names = ("policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")
    for name in names:
        if name not in fields:
            raise RequestError(
                "InvalidArgument", f"Bucket POST must contain a field named '{name}'."
            )
    if fields["x-amz-algorithm"] != ALGORITHM:
        raise RequestError("InvalidArgument", "X-Amz-Algorithm only supports AWS4-HMAC-SHA256.")
    access_key, scope = parse_credential(fields["x-amz-credential"])
    found = await find(access_key)
    if found is None:
        raise RequestError(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
        )
    if "x-amz-security-token" in fields:
        raise RequestError("InvalidToken", "The provided token is malformed or otherwise invalid.")
    key = signing_key(found.secret_key, scope)
    provided = fields["x-amz-signature"].encode("utf-8", "replace")
    if not hmac.compare_digest(sign(key, fields["policy"]).encode(), provided):
        raise RequestError(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
        )
    identity = Identity(
        access_key, UNSIGNED_PAYLOAD, key, scope, fields["x-amz-date"], fields["x-amz-signature"]
    )
    return found.principal, identity


def _check_policy(upload: Upload, now_s: float) -> None:
    """See that a form keeps to its policy; note the bounds of its length."""
    policy = _parsed(upload.fields["policy"])
    if now_s > _expiry(policy.get("expiration")):
        raise _violated("Policy expired.")
    conditions = policy.get("conditions")
    if not isinstance(conditions, list):
        raise _bad_policy("it has no list of conditions")
    fields = {**upload.fields, "bucket": upload.request.bucket}
    if "content-type" not in fields and upload.form.file_type:
        upload.request.headers.setdefault("content-type", upload.form.file_type)
    named: set[str] = set()
    for condition in cast(list[object], conditions):
        for operator, name, value in _comparisons(condition):
            if operator == "content-length-range":
                upload.min_bytes = max(upload.min_bytes, name)
                upload.max_bytes = min(upload.max_bytes, value)
                continue
            named.add(name)
            given = fields.get(name, "")
            holds = given == value if operator == "eq" else given.startswith(value)
            if not holds:
                raise _violated(f"Policy Condition failed: {json.dumps(condition)}")
    for name in upload.fields:
        if name not in named | _UNSIGNED_FIELDS and not name.startswith("x-ignore-"):
            raise _violated(f"Extra input fields: {name}")


def _comparisons(condition: object) -> list[tuple[str, Any, Any]]:
    """(operator, field, value) of a condition; of a length, its bounds."""
    if isinstance(condition, dict):
        items = cast(dict[str, Any], condition).items()
        if not all(isinstance(value, str) for _, value in items):
            raise _bad_policy("a condition's value is no string")
        return [("eq", name.lower(), value) for name, value in items]
    if not isinstance(condition, list) or len(cast(list[object], condition)) != 3:
        raise _bad_policy("a condition is neither an object nor a list of three")
    operator, name, value = cast(list[object], condition)
    operator = operator.lower() if isinstance(operator, str) else ""
    if operator == "content-length-range":
        try:
            return [(operator, int(str(name)), int(str(value)))]
        except ValueError:
            raise _bad_policy("content-length-range has two numbers") from None
    if operator not in ("eq", "starts-with") or not isinstance(name, str) or name[:1] != "$":
        raise _bad_policy("an operator or field of a condition is unknown")
    if not isinstance(value, str):
        raise _bad_policy("a condition's value is no string")
    return [(operator, name[1:].lower(), value)]


def _parsed(encoded: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise _bad_policy("it is not JSON in base64") from None
    if not isinstance(value, dict):
        raise _bad_policy("it is not an object")
    return cast(dict[str, Any], value)


def _expiry(value: Any) -> float:
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _bad_policy("its expiration is no date") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _violated(why: str) -> RequestError:
    return RequestError("AccessDenied", f"Invalid according to Policy: {why}")


def _bad_policy(why: str) -> RequestError:
    return RequestError("InvalidPolicyDocument", f"The policy of the form cannot be used: {why}")
