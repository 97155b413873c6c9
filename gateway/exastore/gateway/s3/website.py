"""Static websites: the configuration of a bucket, and what it says about a request. Pure."""

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote
from xml.etree.ElementTree import Element

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.message import is_header_text

MAX_RULES = 50


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a request is sent instead; "" keeps what the request has."""

    host: str = ""
    protocol: str = ""
    code: int = 301
    key_prefix: str | None = None
    """Replaces the prefix of the condition."""
    key: str | None = None
    """Replaces the whole key."""


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """A redirect, and when it is done; conditions that are there must all hold."""

    redirect: Redirect
    prefix: str | None = None
    error: int | None = None

    def applies(self, key: str, status: int | None) -> bool:
        """Whether it is done, before anything was read (None) or after it failed."""
        return self.error == status and key.startswith(self.prefix or "")


@dataclass(frozen=True, slots=True)
class Website:
    """What a bucket serves as a site."""

    index_suffix: str = ""
    error_key: str = ""
    all_to: Redirect | None = None
    rules: tuple[RoutingRule, ...] = ()

    def key_of(self, key: str) -> str:
        """The object that a path means."""
        return key + self.index_suffix if not key or key.endswith("/") else key

    def redirect_of(self, key: str, status: int | None) -> tuple[Redirect, str] | None:
        """(redirect, the key to go to); None: there is none."""
        if self.all_to is not None:
            return self.all_to, key
        for rule in self.rules:
            if rule.applies(key, status):
                to = rule.redirect
                if to.key is not None:
                    return to, to.key
                if to.key_prefix is not None:
                    return to, to.key_prefix + key.removeprefix(rule.prefix or "")
                return to, key
        return None


def location_of(redirect: Redirect, key: str, host: str, *, secure: bool) -> str:
    """The value of Location."""
    protocol = redirect.protocol or ("https" if secure else "http")
    return f"{protocol}://{redirect.host or host}/{quote(key, safe='/~')}"


@lru_cache(maxsize=1024)
def parse_website(document: bytes) -> Website:
    """Read a WebsiteConfiguration.

    Raises:
        RequestError: MalformedXML, InvalidArgument, InvalidRequest.
    """
    root = xml.parse_document(document, "WebsiteConfiguration")
    everything = root.find("RedirectAllRequestsTo")
    if everything is not None:
        if len(root) > 1:
            raise xml.malformed()
        return Website(all_to=_redirect(everything))
    suffix = root.findtext("IndexDocument/Suffix", "")
    if not suffix or "/" in suffix:
        raise RequestError(
            "InvalidArgument", "The IndexDocument Suffix is not well formed: no slash, not empty"
        )
    error_key = root.findtext("ErrorDocument/Key", "")
    elements = root.findall("RoutingRules/RoutingRule")
    if len(elements) > MAX_RULES:
        raise RequestError(
            "InvalidRequest", f"{len(elements)} routing rules provided, {MAX_RULES} are allowed"
        )
    return Website(suffix, error_key, None, tuple(_rule(element) for element in elements))


def _rule(element: Element) -> RoutingRule:
    found = element.find("Redirect")
    if found is None:
        raise xml.malformed()
    error = element.findtext("Condition/HttpErrorCodeReturnedEquals")
    if error is not None and error not in ("403", "404", "405", "400", "416", "500", "503"):
        raise RequestError("InvalidArgument", "The HTTP error code of a condition is not valid")
    prefix = element.findtext("Condition/KeyPrefixEquals")
    return RoutingRule(_redirect(found), prefix, None if error is None else int(error))


def _redirect(element: Element) -> Redirect:
    host, protocol = element.findtext("HostName", ""), element.findtext("Protocol", "")
    code = element.findtext("HttpRedirectCode", "301")
    if protocol not in ("", "http", "https") or not is_header_text(host) or "/" in host:
        raise RequestError("InvalidArgument", "A redirect has no valid protocol or host name")
    if code not in ("301", "302", "303", "304", "305", "307", "308"):
        raise RequestError("InvalidArgument", "The HTTP redirect code is not valid")
    key_prefix = element.findtext("ReplaceKeyPrefixWith")
    key = element.findtext("ReplaceKeyWith")
    if key_prefix is not None and key is not None:
        raise RequestError("InvalidRequest", "A redirect replaces the key or its prefix, not both")
    return Redirect(host, protocol, int(code), key_prefix, key)
