"""The pure parts of the S3 front: targets, routing, XML, ranges, conditions, attributes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import conditions, xml
from exastore.gateway.s3.attributes import (
    check_key,
    checksum_headers,
    overridden_headers,
    parse_copy_source,
    read_attributes,
)
from exastore.gateway.s3.buckets import check_bucket_name
from exastore.gateway.s3.errors import STATUS_OF_CODE, status_of
from exastore.gateway.s3.front import HANDLERS
from exastore.gateway.s3.listing import decode_token, encode_token
from exastore.gateway.s3.message import Request, parse_query, split_target
from exastore.gateway.s3.routing import OPERATIONS, SUB_RESOURCES, route_of
from exastore.gateway.store import ByteRange, Deletion, ObjectInfo, Precondition


class NoBody:
    started = False

    async def read(self) -> bytes | None:
        return None


def request(method: str, target: str, headers: dict[str, str] | None = None) -> Request:
    path, _, query = target.partition("?")
    it = Request(method, path.encode(), query.encode(), headers or {}, NoBody())
    it.query = parse_query(it.raw_query)
    it.bucket, it.key = split_target(it.raw_path, it.headers.get("host", ""), "s3.example.org")
    return it


def code_of(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    return caught.value.code


# ---- targets ----


@pytest.mark.parametrize(
    ("path", "host", "target"),
    [
        ("/", "", ("", "")),
        ("/b", "", ("b", "")),
        ("/b/", "", ("b", "")),
        ("/b/k", "", ("b", "k")),
        ("/b//k//", "", ("b", "/k//")),
        ("/b/../k", "", ("b", "../k")),
        ("/b/%2F+%25", "", ("b", "/+%")),
        ("/b/%C3%BC", "", ("b", "ü")),
        ("/k/x", "b.s3.example.org:9000", ("b", "k/x")),
        ("/", "b.c.S3.example.org", ("b.c", "")),
        ("/b/k", "s3.example.org", ("b", "k")),
        ("/b/k", "b.other.org", ("b", "k")),
    ],
)
def test_a_path_names_a_bucket_and_a_key(path: str, host: str, target: tuple[str, str]) -> None:
    assert split_target(path.encode(), host, "s3.example.org") == target


def test_what_is_not_utf8_is_no_key() -> None:
    assert code_of(split_target, b"/b/%FF", "", "") == "InvalidURI"
    assert code_of(parse_query, b"prefix=%FF") == "InvalidURI"


def test_queries_are_decoded_like_forms() -> None:
    assert parse_query(b"uploads&prefix=a+b%2Bc&x=1&x=2&empty=") == {
        "uploads": "",
        "prefix": "a b+c",
        "x": "1",
        "empty": "",
    }
    assert parse_query(b"") == {}


# ---- routing ----


@pytest.mark.parametrize(
    ("method", "target", "operation"),
    [
        ("GET", "/", "ListBuckets"),
        ("GET", "/b?list-type=2&prefix=x", "ListObjectsV2"),
        ("GET", "/b?list-type=1", "ListObjects"),
        ("GET", "/b/", "ListObjects"),
        ("GET", "/b?uploads&prefix=delete", "ListMultipartUploads"),
        ("PUT", "/b/k?x-id=PutObject", "PutObject"),
        ("PUT", "/b/k?partNumber=1&uploadId=u", "UploadPart"),
        ("GET", "/b/k?partNumber=1", "GetObject"),
        ("POST", "/b/k?uploads=", "CreateMultipartUpload"),
        ("POST", "/b?delete", "DeleteObjects"),
        ("HEAD", "/b/k", "HeadObject"),
    ],
)
def test_requests_find_their_operation(method: str, target: str, operation: str) -> None:
    assert route_of(request(method, target)).operation == operation


def test_a_copy_is_a_put_with_a_source() -> None:
    source = {"x-amz-copy-source": "/b/k"}
    assert route_of(request("PUT", "/b/k", source)).operation == "CopyObject"
    part = request("PUT", "/b/k?partNumber=1&uploadId=u", source)
    assert route_of(part).operation == "UploadPartCopy"


@pytest.mark.parametrize(
    ("method", "target", "code"),
    [
        ("PUT", "/b?replication", "NotImplemented"),
        ("GET", "/b/k?torrent", "NotImplemented"),
        ("POST", "/b/k?restore", "NotImplemented"),
        ("POST", "/b", "NotImplemented"),
        ("POST", "/", "NotImplemented"),
        ("PUT", "/", "MethodNotAllowed"),
        ("OPTIONS", "/", "MethodNotAllowed"),
        ("PATCH", "/b/k", "MethodNotAllowed"),
    ],
)
def test_what_is_not_there_is_said_so(method: str, target: str, code: str) -> None:
    assert code_of(route_of, request(method, target)) == code


def test_every_operation_has_a_handler_and_every_handler_a_route() -> None:
    by_front = {"Preflight", "PostObject"}
    assert {route.operation for route in OPERATIONS.values()} == set(HANDLERS) | by_front
    named = {name.partition("+")[0] for _, _, name in OPERATIONS}
    named -= {"", "copy", "form", "list-type=2"}
    assert named <= SUB_RESOURCES


def test_every_error_code_that_is_raised_has_a_status_on_purpose() -> None:
    # 400 is the default; a code that says "NoSuch" or "Denied" must not fall to it.
    folder = Path(xml.__file__).parent
    raised = {
        code
        for path in folder.glob("*.py")
        for code in re.findall(r'(?:S3|Request)Error\(\s*"(\w+)"', path.read_text())
    }
    assert {"NoSuchTagSet", "PreconditionFailed", "MalformedTrailerError"} <= raised
    suspicious = re.compile("NoSuch|Denied|NotFound|Forbidden|Not[A-Z]|Unavailable")
    assert [c for c in raised - set(STATUS_OF_CODE) if suspicious.search(c)] == []
    assert status_of("MalformedXML") == 400


# ---- XML ----


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_text_survives_a_document(text: str) -> None:
    root = xml.document("R")
    xml.add(root, "T", text)
    parsed = fromstring(xml.render(root).decode())
    element = parsed.find("{*}T")
    assert element is not None and (element.text or "").rstrip("\ufffe\uffff") == text.rstrip(
        "\ufffe\uffff"
    )


def test_documents_are_read_with_and_without_namespace() -> None:
    body = (
        f'<?xml version="1.0"?><Delete xmlns="{xml.NAMESPACE}"><Quiet>true</Quiet>'
        "<Object><Key>a&amp;b</Key></Object>"
        "<Object><Key> </Key><VersionId>null</VersionId></Object></Delete>"
    )
    batch = xml.parse_delete(body.encode())
    assert (batch.deletions, batch.quiet) == ([Deletion("a&b"), Deletion(" ", "null")], True)
    plain = "<Delete><Object><Key>k</Key></Object></Delete>"
    assert xml.parse_delete(plain.encode()).quiet is False


def test_parts_are_read_with_their_checksums() -> None:
    body = (
        "<CompleteMultipartUpload><Part><ChecksumCRC32>AAAAAA==</ChecksumCRC32>"
        "<ETag>&quot;e&quot;</ETag><PartNumber>7</PartNumber></Part></CompleteMultipartUpload>"
    )
    assert xml.parse_complete(body.encode()) == [xml.CompletedPart(7, "e", {"crc32": "AAAAAA=="})]


BOMB = (
    '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
    "<Delete><Object><Key>&b;</Key></Object></Delete>"
)
EXTERNAL = (
    '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<Delete><Object><Key>&x;</Key></Object></Delete>"
)


@pytest.mark.parametrize(
    "body",
    [
        "text",
        "<Delete>",
        "<Other/>",
        "<Delete/>",
        "<Delete><Object/></Delete>",
        "<Delete><Object><Key/></Object></Delete>",
        '<?xml version="1.0" encoding="nonsense"?><Delete/>',
        BOMB,
        EXTERNAL,
    ],
)
def test_bad_documents_are_refused(body: str) -> None:
    assert code_of(xml.parse_delete, body.encode()) == "MalformedXML"


@pytest.mark.parametrize(
    "part", ["", "<Part/>", "<Part><PartNumber>x</PartNumber><ETag>e</ETag></Part>"]
)
def test_bad_completions_are_refused(part: str) -> None:
    body = f"<CompleteMultipartUpload>{part}</CompleteMultipartUpload>"
    assert code_of(xml.parse_complete, body.encode()) == "MalformedXML"


def test_a_location_may_be_given() -> None:
    assert xml.parse_location(b"") == ""
    name = "CreateBucketConfiguration"
    body = f"<{name}><LocationConstraint>eu</LocationConstraint></{name}>"
    assert xml.parse_location(body.encode()) == "eu"


def test_times_are_shown_in_milliseconds() -> None:
    assert xml.iso_time(1369353600.1239) == "2013-05-24T00:00:00.123Z"


# ---- ranges and conditions ----


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 10)),
        ("bytes=3-5", (3, 3)),
        ("bytes=3-99", (3, 7)),
        ("bytes=-4", (6, 4)),
        ("bytes=-99", (0, 10)),
        ("bytes = 1 - 2", (1, 2)),
        ("bytes=5-3", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, expected: tuple[int, int] | None) -> None:
    got = conditions.parse_range(header, 10)
    assert got == (None if expected is None else ByteRange(*expected))


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_ranges_without_a_byte_are_refused(header: str) -> None:
    assert code_of(conditions.parse_range, header, 10) == "InvalidRange"
    assert code_of(conditions.parse_range, "bytes=0-", 0) == "InvalidRange"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
def test_a_range_is_the_slice_it_says(first: int, last: int, size_bytes: int) -> None:
    data = bytes(range(size_bytes))
    try:
        got = conditions.parse_range(f"bytes={first}-{last}", size_bytes)
    except RequestError:
        assert first >= size_bytes
        return
    if got is None:
        assert last < first
    else:
        assert data[got.start : got.start + got.length] == data[first : last + 1]


INFO = ObjectInfo("b", "k", "v", 1, "etag", 1369353600.5)
BEFORE, AT, AFTER = (f"Fri, 24 May 2013 00:00:{s:02d} GMT" for s in (0, 0, 1))
EARLIER = "Thu, 23 May 2013 00:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"if-match": '"etag"'}, None),
        ({"if-match": '"x", "etag"'}, None),
        ({"if-match": "*"}, None),
        ({"if-match": '"x"'}, "PreconditionFailed"),
        ({"if-none-match": '"x"'}, None),
        ({"if-none-match": 'W/"etag"'}, "NotModified"),
        ({"if-none-match": "*"}, "NotModified"),
        ({"if-modified-since": EARLIER}, None),
        ({"if-modified-since": AT}, "NotModified"),
        ({"if-unmodified-since": AT}, None),
        ({"if-unmodified-since": EARLIER}, "PreconditionFailed"),
        ({"if-unmodified-since": "nonsense"}, None),
        # An ETag decides before a time does.
        ({"if-match": '"etag"', "if-unmodified-since": EARLIER}, None),
        ({"if-none-match": '"x"', "if-modified-since": AFTER}, None),
    ],
)
def test_conditions_of_a_read(headers: dict[str, str], code: str | None) -> None:
    if code is None:
        conditions.check_read(headers, INFO)
    else:
        assert code_of(conditions.check_read, headers, INFO) == code


def test_a_false_condition_on_a_copys_source_is_a_failure() -> None:
    with pytest.raises(RequestError, match="PreconditionFailed"):
        conditions.check_read(
            {"x-amz-copy-source-if-none-match": "etag"}, INFO, prefix="x-amz-copy-source-if-"
        )


def test_conditions_of_a_write() -> None:
    read = conditions.read_precondition
    assert read({}) == Precondition()
    assert read({"if-none-match": "*"}) == Precondition(must_not_exist=True)
    assert read({"if-match": '"e"'}) == Precondition(if_match="e")
    for headers in (
        {"if-none-match": '"e"'},
        {"if-none-match": "*", "if-match": '"e"'},
        {"if-modified-since": AT},
    ):
        assert code_of(read, headers) == "NotImplemented"


# ---- attributes ----


def test_attributes_are_taken_from_headers() -> None:
    attributes = read_attributes(
        {
            "content-type": "text/plain",
            "content-encoding": "aws-chunked,gzip",
            "cache-control": "no-store",
            "x-amz-meta-a": "1",
            "x-amz-acl": "private",
        }
    )
    assert attributes.content_type == "text/plain"
    assert attributes.headers == {"Cache-Control": "no-store", "Content-Encoding": "gzip"}
    assert attributes.user_metadata == {"a": "1"}
    assert read_attributes({}).content_type == "binary/octet-stream"


@pytest.mark.parametrize(
    "name", ["x-amz-object-lock-event-hold", "x-amz-server-side-encryption-context"]
)
def test_what_would_silently_not_be_done_is_refused(name: str) -> None:
    assert code_of(read_attributes, {name: "x"}) == "NotImplemented"


def test_limits_of_names_and_metadata() -> None:
    check_key("ü" * 512)
    assert code_of(check_key, "ü" * 513) == "KeyTooLongError"
    read_attributes({"x-amz-meta-a": "x" * 2047})
    assert code_of(read_attributes, {"x-amz-meta-a": "x" * 2048}) == "MetadataTooLarge"


@pytest.mark.parametrize(
    "name", ["ab", "a" * 64, "Upper", "a_b", "-ab", "ab-", "a..b", "a.-b", "1.2.3.4", "ab\n", "-"]
)
def test_bad_bucket_names_are_refused(name: str) -> None:
    assert code_of(check_bucket_name, name) == "InvalidBucketName"


@pytest.mark.parametrize("name", ["abc", "a" * 63, "a-b.c", "123"])
def test_good_bucket_names_are_accepted(name: str) -> None:
    check_bucket_name(name)


def test_copy_sources_are_decoded() -> None:
    assert parse_copy_source("/b/k%2B%C3%BC/x") == ("b", "k+ü/x", "")
    assert parse_copy_source("b/a+b?versionId=null") == ("b", "a b", "null")
    assert code_of(parse_copy_source, "b/k?versionId=") == "InvalidArgument"
    assert code_of(parse_copy_source, "b/k?x=7") == "InvalidArgument"
    for bad in ("", "b", "/b/", "b/%FF"):
        assert code_of(parse_copy_source, bad) == "InvalidArgument"


def test_checksums_are_shown_with_their_type() -> None:
    assert checksum_headers({}) == {}
    assert checksum_headers({"crc32": "AAAAAA=="}) == {
        "x-amz-checksum-crc32": "AAAAAA==",
        "x-amz-checksum-type": "FULL_OBJECT",
    }
    assert checksum_headers({"sha1": "x-2"})["x-amz-checksum-type"] == "COMPOSITE"


def test_overrides_cannot_inject_headers() -> None:
    assert overridden_headers({"response-content-type": "a/b"}) == {"Content-Type": "a/b"}
    injected = {"response-content-type": "a\r\nSet-Cookie: x"}
    assert code_of(overridden_headers, injected) == "InvalidArgument"


@given(st.text(st.characters(codec="utf-8")))
def test_continuation_tokens_carry_any_key(key: str) -> None:
    assert decode_token(encode_token(key)) == key


@pytest.mark.parametrize("token", ["?", "a", "/w==", "_w=="])
def test_made_up_tokens_are_refused(token: str) -> None:
    assert code_of(decode_token, token) == "InvalidArgument"


def test_a_date_of_a_year_that_no_clock_has_is_no_condition() -> None:
    headers = {"if-modified-since": "Tue, 14 Nov 20234444444444444444444444 22:13:20 GMT"}
    conditions.check_read(headers, ObjectInfo("b", "k", "v", 1, "e", 0.0))
