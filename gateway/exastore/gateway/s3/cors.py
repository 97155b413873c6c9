"""Cross-origin rules: S3's document, preflight requests, and headers of actual answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from xml.etree.ElementTree import Element

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.message import Response, is_header_text
from exastore.gateway.s3.wildcards import literal, matches

MAX_RULES = 100
MAX_BYTES = 64 * 1024
_METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD")
_VARY = "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"


@dataclass(frozen=True, slots=True)
class CorsRule:
    """One rule."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    exposed: tuple[str, ...]
    max_age_s: int | None

    def allows(self, origin: str, method: str, headers: Sequence[str]) -> bool:
        """Whether a page of this origin may send such a request."""
        return (
            method in self.methods
            and any(_fits(pattern, origin) for pattern in self.origins)
            and all(any(_fits(p.lower(), name) for p in self.headers) for name in headers)
        )


def _fits(pattern: str, text: str) -> bool:
    # "?" is a character here; only "*" is a wildcard.
    return matches("*".join(literal(piece) for piece in pattern.split("*")), text)


@lru_cache(maxsize=1024)
def parse_cors(document: bytes) -> tuple[CorsRule, ...]:
    """Read a CORSConfiguration.

    Raises:
        RequestError: MalformedXML, InvalidRequest.
    """
    if len(document) > MAX_BYTES:
        raise xml.malformed()
    root = xml.parse_document(document, "CORSConfiguration")
    elements = root.findall("CORSRule")
    if not 1 <= len(elements) <= MAX_RULES or len(elements) != len(root):
        raise xml.malformed()
    return tuple(_rule(element) for element in elements)


def _rule(element: Element) -> CorsRule:
    def texts(name: str) -> tuple[str, ...]:
        return tuple((child.text or "").strip() for child in element.findall(name))

    origins, methods = texts("AllowedOrigin"), texts("AllowedMethod")
    headers, exposed = texts("AllowedHeader"), texts("ExposeHeader")
    if not origins or not methods:
        raise xml.malformed()
    for method in methods:
        if method not in _METHODS:
            raise RequestError(
                "InvalidRequest",
                f"Found unsupported HTTP method in CORS config. Unsupported method is {method}",
            )
    for what, patterns in (("AllowedOrigin", origins), ("AllowedHeader", headers)):
        for pattern in patterns:
            if pattern.count("*") > 1:
                raise RequestError(
                    "InvalidRequest", f'{what} "{pattern}" can not have more than one wildcard.'
                )
    if any("*" in name or not is_header_text(name) for name in exposed):
        raise RequestError("InvalidRequest", "An ExposeHeader is not the name of a header.")
    age = texts("MaxAgeSeconds")
    if len(age) > 1 or any(not (text.isascii() and text.isdigit()) for text in age):
        raise xml.malformed()
    return CorsRule(origins, methods, headers, exposed, int(age[0][:9]) if age else None)


def preflight(document: bytes | None, headers: Mapping[str, str]) -> Response:
    """Answer an OPTIONS request.

    Raises:
        RequestError: BadRequest, AccessForbidden.
    """
    origin = headers.get("origin")
    method = headers.get("access-control-request-method")
    if not origin:
        raise RequestError("BadRequest", "Insufficient information. Origin request header needed.")
    if method not in _METHODS:
        raise RequestError("BadRequest", f"Invalid Access-Control-Request-Method: {method}")
    if document is None:
        raise RequestError("AccessForbidden", "CORSResponse: CORS is not enabled for this bucket.")
    asked = headers.get("access-control-request-headers", "").lower().split(",")
    names = [name.strip() for name in asked if name.strip()]
    for rule in parse_cors(document):
        if rule.allows(origin, method, names):
            found = _headers_of(rule, origin)
            if names:
                found["Access-Control-Allow-Headers"] = ", ".join(names)
            if rule.max_age_s is not None:
                found["Access-Control-Max-Age"] = str(rule.max_age_s)
            return Response(200, found)
    raise RequestError(
        "AccessForbidden",
        "CORSResponse: This CORS request is not allowed: no rule of the bucket lets this origin "
        "send this method with these headers.",
    )


def headers_for(document: bytes | None, method: str, origin: str) -> dict[str, str]:
    """What to add to the answer of a request that a page sent; nothing if no rule lets it."""
    if document is None:
        return {}
    for rule in parse_cors(document):
        if rule.allows(origin, method, ()):
            return _headers_of(rule, origin)
    # A cache must not give this answer to pages of other origins.
    return {"Vary": _VARY}


def _headers_of(rule: CorsRule, origin: str) -> dict[str, str]:
    anywhere = "*" in rule.origins
    headers = {
        "Access-Control-Allow-Origin": "*" if anywhere else origin,
        "Access-Control-Allow-Methods": ", ".join(rule.methods),
        "Vary": _VARY,
    }
    if rule.exposed:
        headers["Access-Control-Expose-Headers"] = ", ".join(rule.exposed)
    if not anywhere:
        headers["Access-Control-Allow-Credentials"] = "true"
    return headers
