"""AWS Signature Version 4, as S3 uses it: in the header, in the query, and over body frames.

Pure: `now_s` and the secrets are arguments. What was sent is what is signed: the path is taken raw
and never normalised, query pairs are re-encoded one by one and sorted, header values are trimmed.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.errors import S3Error
from exastore.gateway.s3.message import Request, is_header_text

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
#: Parameters of a presigned URL that are about its signature.
_QUERY_OF_SIGNATURE = frozenset(
    {
        "x-amz-algorithm",
        "x-amz-content-sha256",
        "x-amz-copy-source",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-security-token",
        "x-amz-signature",
        "x-amz-signedheaders",
    }
)
MAX_SKEW_S = 15 * 60
MAX_PRESIGNED_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Scope:
    """What a signing key is good for: one day, one region, one service."""

    date: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


@dataclass(frozen=True, slots=True)
class Authorization:
    """What a request claims about its signature."""

    access_key: str
    scope: Scope
    signed_headers: tuple[str, ...]
    signature: str
    timestamp: str
    """As in the string to sign: 20130524T000000Z."""
    payload_hash: str
    """The value of x-amz-content-sha256 that was signed."""
    expires_s: int | None = None
    """Lifetime of a presigned URL; None when signed in the header."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a verified request, and what verifies the frames of its body."""

    access_key: str
    payload_hash: str
    signing_key: bytes
    scope: Scope
    timestamp: str
    signature: str
    signed_s: float = 0.0
    """Unix time of `timestamp`."""


@lru_cache(maxsize=256)
def signing_key(secret_key: str, scope: Scope) -> bytes:
    """The key derived from a secret for one scope."""
    key = ("AWS4" + secret_key).encode()
    for text in (scope.date, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, text.encode(), "sha256")
    return key


def sign(key: bytes, string_to_sign: str) -> str:
    """The signature of a string, in hex."""
    return hmac.digest(key, string_to_sign.encode(), "sha256").hex()


def canonical_query(raw_query: bytes) -> str:
    """The query with every pair re-encoded and sorted, without X-Amz-Signature."""
    if not raw_query:
        return ""
    pairs: list[tuple[str, str]] = []
    for pair in raw_query.decode("latin-1").split("&"):
        name, _, value = pair.partition("=")
        if name and name != "X-Amz-Signature":
            pairs.append((_reencode(name), _reencode(value)))
    pairs.sort()
    return "&".join(f"{name}={value}" for name, value in pairs)


def _reencode(text: str) -> str:
    return quote(unquote_to_bytes(text.replace("+", "%20").encode("latin-1")), safe="-_.~")


def canonical_path(raw_path: bytes) -> str:
    """The path decoded and encoded again: what clients mean that sign more than they encode."""
    return quote(unquote_to_bytes(raw_path), safe="/-_.~")


def canonical_request(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    signed_headers: Sequence[str],
    payload_hash: str,
) -> bytes:
    """The bytes whose hash is signed. `path` and `query` are in canonical form already."""
    lines = [method, path, query]
    lines += [f"{name}:{' '.join(headers.get(name, '').split())}" for name in signed_headers]
    lines += ["", ";".join(signed_headers), payload_hash]
    return "\n".join(lines).encode("latin-1")


def string_to_sign(timestamp: str, scope: Scope, canonical: bytes) -> str:
    """What the signature of a request covers."""
    return f"{ALGORITHM}\n{timestamp}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"


def frame_signature(
    key: bytes, timestamp: str, scope: Scope, previous_signature: str, frame_sha256: str
) -> str:
    """The signature of an aws-chunked frame; each covers the one before it."""
    return sign(
        key,
        f"{ALGORITHM}-PAYLOAD\n{timestamp}\n{scope}\n{previous_signature}\n"
        f"{EMPTY_SHA256}\n{frame_sha256}",
    )


def trailer_signature(
    key: bytes, timestamp: str, scope: Scope, previous_signature: str, trailer: bytes
) -> str:
    """The signature of the trailers of an aws-chunked body: `name:value` lines, each ended."""
    return sign(
        key,
        f"{ALGORITHM}-TRAILER\n{timestamp}\n{scope}\n{previous_signature}\n"
        f"{hashlib.sha256(trailer).hexdigest()}",
    )


def is_anonymous(request: Request) -> bool:
    """Whether a request claims no signature at all, of any version."""
    query = request.query
    return "authorization" not in request.headers and not (
        query and ("X-Amz-Algorithm" in query or "X-Amz-Signature" in query or "Signature" in query)
    )


def anonymous_identity(request: Request) -> Identity:
    """Of a request without a signature: its payload is as it says, and its frames are not signed.

    Raises:
        RequestError: AccessDenied when it promises signed frames.
    """
    payload_hash = request.headers.get("x-amz-content-sha256", UNSIGNED_PAYLOAD)
    if payload_hash.startswith("STREAMING-AWS4-"):
        raise RequestError("AccessDenied", "Frames are signed, but the request is not.")
    return Identity("", payload_hash, b"", Scope("", "", "s3"), "", "")


def hoist_headers(request: Request) -> None:
    """Take the x-amz- headers that a presigned URL carries in its signed query, as some SDKs do.

    Checksums stay where they are: who presigned did not know the body.

    Raises:
        RequestError: InvalidArgument for one that is no header value.
    """
    for name, value in request.query.items():
        lowered = name.lower()
        if (
            lowered.startswith("x-amz-")
            and lowered not in _QUERY_OF_SIGNATURE
            and not lowered.startswith(("x-amz-checksum-", "x-amz-sdk-"))
            and lowered not in request.headers
        ):
            if not is_header_text(value):
                raise RequestError("InvalidArgument", f"{name} is no header value.")
            request.headers[lowered] = value.encode().decode("latin-1")


def verify(
    request: Request, authorization: Authorization, secret_key: str | None, now_s: float
) -> Identity:
    """Check the signature of a request.

    Args:
        authorization: What it claims, by `parse_authorization`.
        secret_key: That of the access key it names; None: there is no such key.

    Raises:
        RequestError: AccessDenied (expired), InvalidAccessKeyId, RequestTimeTooSkewed,
            SignatureDoesNotMatch, AuthorizationHeaderMalformed, InvalidToken, ...
    """
    if secret_key is None:
        raise S3Error(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
            fields={"AWSAccessKeyId": authorization.access_key},
        )
    if "x-amz-security-token" in request.headers or "X-Amz-Security-Token" in request.query:
        # There are no temporary credentials, so a token was made elsewhere.
        raise RequestError("InvalidToken", "The provided token is malformed or otherwise invalid.")
    signed_s = _check_time(authorization, now_s)
    _check_signed_headers(request, authorization)
    key = signing_key(secret_key, authorization.scope)
    if not _signature_matches(request, authorization, key):
        raise S3Error(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
            fields={
                "AWSAccessKeyId": authorization.access_key,
                "SignatureProvided": authorization.signature,
            },
        )
    return Identity(
        authorization.access_key,
        authorization.payload_hash,
        key,
        authorization.scope,
        authorization.timestamp,
        authorization.signature,
        signed_s,
    )


def _signature_matches(request: Request, authorization: Authorization, key: bytes) -> bool:
    """Whether the path as it was sent, or else its canonical form, was signed with `key`."""
    query = canonical_query(request.raw_query)

    def matches(path: str) -> bool:
        canonical = canonical_request(
            request.method,
            path,
            query,
            request.headers,
            authorization.signed_headers,
            authorization.payload_hash,
        )
        signature = sign(
            key, string_to_sign(authorization.timestamp, authorization.scope, canonical)
        )
        provided = authorization.signature.encode("utf-8", "replace")
        return hmac.compare_digest(signature.encode(), provided)

    return matches(request.raw_path.decode("latin-1")) or matches(canonical_path(request.raw_path))


def parse_authorization(request: Request) -> Authorization:
    """Read the signature of a request from its Authorization header or its query.

    Raises:
        RequestError: InvalidRequest (another version), AccessDenied, AuthorizationHeaderMalformed,
            AuthorizationQueryParametersError, InvalidArgument.
    """
    header = request.headers.get("authorization")
    if header is not None:
        if "X-Amz-Algorithm" in request.query:
            raise RequestError("InvalidArgument", "Only one auth mechanism allowed.")
        return _from_header(header, request.headers)
    if "X-Amz-Algorithm" in request.query:
        return _from_query(request)
    if "Signature" in request.query or "AWSAccessKeyId" in request.query:
        raise RequestError(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. "
            "Please use AWS4-HMAC-SHA256.",
        )
    raise RequestError("AccessDenied", "Access Denied")


def check_region(authorization: Authorization, region: str) -> None:
    """Refuse a signature of another region; SDKs sign again for the one that the answer names.

    Raises:
        S3Error: AuthorizationHeaderMalformed, AuthorizationQueryParametersError.
    """
    signed = authorization.scope.region
    if signed == region:
        return
    is_query = authorization.expires_s is not None
    raise S3Error(
        "AuthorizationQueryParametersError" if is_query else "AuthorizationHeaderMalformed",
        (
            "Error parsing the X-Amz-Credential parameter"
            if is_query
            else "The authorization header is malformed"
        )
        + f"; the region '{signed}' is wrong; expecting '{region}'",
        fields={"Region": region},
        headers={"x-amz-bucket-region": region},
    )


def _from_header(header: str, headers: Mapping[str, str]) -> Authorization:
    algorithm, _, rest = header.strip().partition(" ")
    if algorithm != ALGORITHM and algorithm != "AWS" and not algorithm.startswith("AWS4-"):
        raise S3Error(
            "InvalidArgument",
            "Unsupported Authorization Type",
            fields={"ArgumentName": "Authorization", "ArgumentValue": algorithm[:64]},
        )
    if algorithm != ALGORITHM:
        raise RequestError(
            "InvalidRequest",
            "The authorization mechanism you have provided is not supported. "
            "Please use AWS4-HMAC-SHA256.",
        )
    fields: dict[str, str] = {}
    for item in rest.split(","):
        name, equals, value = item.strip().partition("=")
        if not equals:
            raise _malformed("The authorization header has a field without a value.")
        fields[name] = value
    try:
        credential, signed, signature = (
            fields[name] for name in ("Credential", "SignedHeaders", "Signature")
        )
    except KeyError as missing:
        raise _malformed(f"The authorization header has no {missing.args[0]}.") from None
    access_key, scope = parse_credential(credential)
    timestamp = headers.get("x-amz-date")
    if timestamp is None:
        timestamp = _timestamp_of_date(headers.get("date"))
    payload_hash = headers.get("x-amz-content-sha256")
    if payload_hash is None:
        raise RequestError(
            "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"
        )
    _check_payload_hash(payload_hash)
    return Authorization(
        access_key, scope, tuple(signed.split(";")), signature, timestamp, payload_hash
    )


def _from_query(request: Request) -> Authorization:
    query = request.query
    if query["X-Amz-Algorithm"] != ALGORITHM:
        raise _bad_query("X-Amz-Algorithm only supports AWS4-HMAC-SHA256.")
    names = (
        "X-Amz-Credential",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Date",
        "X-Amz-Expires",
    )
    if any(name not in query for name in names):
        raise _bad_query("Query-string authentication version 4 requires " + ", ".join(names) + ".")
    credential, signed, signature, timestamp, expires = (query[name] for name in names)
    if not expires.isascii() or not expires.isdigit():
        raise _bad_query("X-Amz-Expires should be a number of seconds.")
    expires_s = int(expires[:9])
    if expires_s > MAX_PRESIGNED_S:
        raise _bad_query("X-Amz-Expires must be less than a week (in seconds); 604800 at most.")
    if _seconds_of(timestamp) is None:
        raise _bad_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    try:
        access_key, scope = parse_credential(credential)
    except RequestError as error:
        raise _bad_query(f"Error parsing the X-Amz-Credential parameter; {error.message}") from None
    payload_hash = query.get("X-Amz-Content-Sha256")
    if payload_hash is None:
        payload_hash = request.headers.get("x-amz-content-sha256", UNSIGNED_PAYLOAD)
    return Authorization(
        access_key, scope, tuple(signed.split(";")), signature, timestamp, payload_hash, expires_s
    )


#: What x-amz-content-sha256 may say.
_PAYLOAD = re.compile(
    r"[0-9a-fA-F]{64}|UNSIGNED-PAYLOAD|STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    r"|STREAMING-AWS4-HMAC-SHA256-PAYLOAD(-TRAILER)?"
)


def _check_payload_hash(payload_hash: str) -> None:
    """Raise InvalidArgument for what is neither a SHA-256 in hex nor a word of S3's."""
    if not _PAYLOAD.fullmatch(payload_hash):
        raise RequestError(
            "InvalidArgument",
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING-* value of Signature "
            "Version 4 or a valid sha256 value.",
        )


def parse_credential(credential: str) -> tuple[str, Scope]:
    fields = credential.rsplit("/", 4)
    if len(fields) != 5 or fields[4] != "aws4_request" or not all(fields):
        raise _malformed(
            "The Credential is mal-formed; expecting "
            '"<access-key>/YYYYMMDD/REGION/SERVICE/aws4_request".'
        )
    access_key, date, region, service, _ = fields
    if service != "s3":
        raise _malformed(f'The Credential has the service "{service}"; expecting "s3".')
    return access_key, Scope(date, region, service)


def _timestamp_of_date(date: str | None) -> str:
    if date is None:
        raise RequestError(
            "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header"
        )
    try:
        when = parsedate_to_datetime(date)
    except ValueError:
        return date  # ISO basic format is allowed here too; `_check_time` decides.
    return when.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


@lru_cache(maxsize=256)
def _seconds_of(timestamp: str) -> float | None:
    """Unix time of 20130524T000000Z; None when it is something else."""
    try:
        when = datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ")
    except ValueError:
        return None
    return when.replace(tzinfo=UTC).timestamp()


def _check_time(authorization: Authorization, now_s: float) -> float:
    """When the request was signed, if that is near enough."""
    signed_s = _seconds_of(authorization.timestamp)
    if signed_s is None:
        raise RequestError(
            "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header"
        )
    if not authorization.timestamp.startswith(authorization.scope.date):
        raise _malformed("The date of the Credential is not that of the request.")
    age_s = now_s - signed_s
    expires_s = authorization.expires_s
    if expires_s is None and abs(age_s) > MAX_SKEW_S:
        code = "RequestTimeTooSkewed"
        message = "The difference between the request time and the server's time is too large."
    elif expires_s is not None and age_s < -MAX_SKEW_S:
        code, message = "AccessDenied", "Request is not valid yet"
    elif expires_s is not None and age_s > expires_s:
        code, message = "AccessDenied", "Request has expired"
    else:
        return signed_s
    facts = {
        "RequestTime": authorization.timestamp,
        "ServerTime": _iso(now_s),
        "MaxAllowedSkewMilliseconds": str(MAX_SKEW_S * 1000),
    }
    raise S3Error(code, message, fields=facts)


def _check_signed_headers(request: Request, authorization: Authorization) -> None:
    signed = authorization.signed_headers
    if "host" not in signed:
        raise _not_signed("host")
    presigned = authorization.expires_s is not None
    for name in request.headers:
        if not name.startswith("x-amz-") or name in signed:
            continue
        if presigned and name == "x-amz-content-sha256":
            continue  # Its value is within the signature, as the payload hash.
        raise _not_signed(name)


def _not_signed(name: str) -> S3Error:
    return S3Error(
        "AccessDenied",
        "There were headers present in the request which were not signed",
        fields={"HeadersNotSigned": name},
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _malformed(message: str) -> RequestError:
    return RequestError("AuthorizationHeaderMalformed", message)


def _bad_query(message: str) -> RequestError:
    return RequestError("AuthorizationQueryParametersError", message)
