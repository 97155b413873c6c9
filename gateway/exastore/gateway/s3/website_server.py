"""Requests to a website: index and error documents, redirects. Everybody is anonymous there."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from html import escape
from typing import Protocol, runtime_checkable

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.attributes import REDIRECT_LOCATION
from exastore.gateway.s3.errors import status_of
from exastore.gateway.s3.guard import BucketCache
from exastore.gateway.s3.message import Request, Response
from exastore.gateway.s3.website import Redirect, Website, location_of, parse_website

Read = Callable[[Request], Awaitable[Response]]


async def serve_website(request: Request, buckets: BucketCache, read: Read) -> Response:
    """Answer a browser.

    Args:
        read: Answers the GET or HEAD of an object, for anybody.

    Raises:
        RequestError: MethodNotAllowed, NoSuchBucket, NoSuchWebsiteConfiguration.
    """
    if request.method not in ("GET", "HEAD"):
        raise RequestError(
            "MethodNotAllowed", "The specified method is not allowed against this resource."
        )
    bucket = await buckets.get(request.bucket)
    if bucket.website is None:
        raise RequestError(
            "NoSuchWebsiteConfiguration",
            "The specified bucket does not have a website configuration",
        )
    site, key = parse_website(bucket.website), request.key
    request.query = {}
    redirect = site.redirect_of(key, None)
    if redirect is not None:
        return _redirected(request, *redirect)
    try:
        found = await read(replace(request, key=site.key_of(key)))
    except RequestError as error:
        status = status_of(error.code)
        if status not in (403, 404):
            raise
        if key and not key.endswith("/") and await _exists(request, site.key_of(key + "/"), read):
            return _redirected(request, Redirect(code=302), key + "/")
        redirect = site.redirect_of(key, status)
        if redirect is not None:
            return _redirected(request, *redirect)
        return await _error_page(request, site, status, error, read)
    location = found.headers.get(REDIRECT_LOCATION)
    if location is None:
        return found
    if not isinstance(found.content, bytes) and isinstance(found.content, Closable):
        await found.content.aclose()
    return Response(301, {"Location": location})


@runtime_checkable
class Closable(Protocol):
    """Content that is read no further."""

    async def aclose(self) -> None: ...


async def _exists(request: Request, key: str, read: Read) -> bool:
    try:
        await read(replace(request, method="HEAD", key=key, headers=_plain(request)))
    except RequestError:
        return False
    return True


async def _error_page(
    request: Request, site: Website, status: int, error: RequestError, read: Read
) -> Response:
    if site.error_key:
        try:
            page = await read(replace(request, key=site.error_key, headers=_plain(request)))
        except RequestError:
            pass
        else:
            page.status = status
            return page
    text = (
        f"<html><head><title>{status}</title></head><body><h1>{status}</h1>"
        f"<p>{escape(error.code)}: {escape(error.message)}</p></body></html>"
    )
    content = b"" if request.method == "HEAD" else text.encode()
    return Response(status, {"Content-Type": "text/html; charset=utf-8"}, content)


def _plain(request: Request) -> dict[str, str]:
    """The headers without those that ask for a part or a condition of another object."""
    dropped = ("range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
    return {name: text for name, text in request.headers.items() if name not in dropped}


def _redirected(request: Request, redirect: Redirect, key: str) -> Response:
    host = request.headers.get("host", "")
    location = location_of(redirect, key, host, secure=request.secure)
    return Response(redirect.code, {"Location": location})
