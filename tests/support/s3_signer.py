"""Requests of S3 as bytes, signed in any way, rightly or wrongly: written from AWS's description of
Signature Version 4, apart from what it tests.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import quote

REGION = "us-east-1"
ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Wire:
    """What goes over the wire."""

    method: str
    path: str
    """Percent-encoded."""
    query: str
    """Encoded, without the question mark."""
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes = b""

    def changed(self, **headers: str | None) -> "Wire":
        """With other headers (underscores are hyphens); None: without it."""
        kept = dict(self.headers)
        for name, value in headers.items():
            kept.pop(name.replace("_", "-"), None)
            if value is not None:
                kept[name.replace("_", "-")] = value
        return replace(self, headers=kept)


@dataclass(frozen=True)
class Spec:
    """A request, and how it is signed."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    access_key: str = "ANN"
    """"": nobody signs."""
    secret: str | None = None
    """None: the right one."""
    payload_hash: str | None = None
    """None: the SHA-256 of the body."""
    skew_s: float = 0.0
    """How far the signer's clock is ahead."""
    region: str = REGION
    service: str = "s3"
    scope_date: str | None = None
    expires: str | None = None
    """Of a presigned URL; None: signed in the header."""

    def with_headers(self, **headers: str) -> "Spec":
        """With more headers; underscores are hyphens."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={**self.headers, **more})

    def with_query(self, **parameters: str) -> "Spec":
        """With more parameters; underscores are hyphens."""
        more = {name.replace("_", "-"): value for name, value in parameters.items()}
        return replace(self, query={**self.query, **more})


def encoded(query: Mapping[str, str]) -> str:
    """A query as it is sent, and signed."""
    pairs = sorted((quote(n, safe="-_.~"), quote(v, safe="-_.~")) for n, v in query.items())
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed(spec: Spec, host: str, now_s: float, keys: Mapping[str, tuple[str, str]]) -> Wire:
    """The request on its way to `host`.

    Args:
        keys: Of whom a spec names: access key and secret. Who is not there has a key of that name.
    """
    headers = {"host": host, **{name.lower(): text for name, text in spec.headers.items()}}
    if spec.method in ("PUT", "POST") or spec.body:
        headers.setdefault("content-length", str(len(spec.body)))
    if not spec.access_key:
        return Wire(spec.method, spec.path, encoded(spec.query), headers, spec.body)
    when = datetime.fromtimestamp(now_s + spec.skew_s, UTC)
    timestamp = when.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{spec.scope_date or timestamp[:8]}/{spec.region}/{spec.service}/aws4_request"
    access_key, secret = keys.get(spec.access_key, (spec.access_key, "no-secret"))
    secret = spec.secret if spec.secret is not None else secret
    if spec.expires is None:
        payload_hash = spec.payload_hash or hashlib.sha256(spec.body).hexdigest()
        headers.setdefault("x-amz-date", timestamp)
        headers.setdefault("x-amz-content-sha256", payload_hash)
        names = sorted(set(headers) - {"content-length", "expect", "user-agent"})
        signature = _signature(
            spec, spec.query, headers, names, payload_hash, timestamp, scope, secret
        )
        headers["authorization"] = (
            f"{ALGORITHM} Credential={access_key}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={signature}"
        )
        return Wire(spec.method, spec.path, encoded(spec.query), headers, spec.body)
    names = sorted(set(headers) - {"content-length"})
    query = {
        **spec.query,
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{access_key}/{scope}",
        "X-Amz-Date": timestamp,
        "X-Amz-Expires": spec.expires,
        "X-Amz-SignedHeaders": ";".join(names),
    }
    signature = _signature(
        spec, query, headers, names, "UNSIGNED-PAYLOAD", timestamp, scope, secret
    )
    query["X-Amz-Signature"] = signature
    return Wire(spec.method, spec.path, encoded(query), headers, spec.body)


def _signature(
    spec: Spec,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    names: list[str],
    payload_hash: str,
    timestamp: str,
    scope: str,
    secret: str,
) -> str:
    lines = [spec.method, spec.path, encoded(query)]
    lines += [f"{name}:{' '.join(headers[name].split())}" for name in names]
    canonical = "\n".join([*lines, "", ";".join(names), payload_hash])
    digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
    key = f"AWS4{secret}".encode()
    for text in scope.split("/"):
        key = hmac.digest(key, text.encode(), "sha256")
    to_sign = f"{ALGORITHM}\n{timestamp}\n{scope}\n{digest}"
    return hmac.digest(key, to_sign.encode(), "sha256").hex()
