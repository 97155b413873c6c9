"""Signature Version 4: AWS's published examples, botocore's signer, and what is refused."""

import hashlib
from calendar import timegm
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.auth import (
    Identity,
    Scope,
    check_region,
    frame_signature,
    parse_authorization,
    signing_key,
    trailer_signature,
    verify,
)
from exastore.gateway.s3.errors import S3Error
from exastore.gateway.s3.message import Request, parse_query

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SECRETS = {ACCESS_KEY: SECRET_KEY}
EXAMPLE_S = float(timegm((2013, 5, 24, 0, 0, 0)))
EMPTY = hashlib.sha256(b"").hexdigest()
SCOPE = Scope("20130524", "us-east-1", "s3")
EXAMPLE_HEADERS = {"host": "examplebucket.s3.amazonaws.com", "x-amz-date": "20130524T000000Z"}


class NoBody:
    started = False

    async def read(self) -> bytes | None:
        return None


def request(method: str, target: str, headers: dict[str, str]) -> Request:
    path, _, query = target.partition("?")
    raw_query = query.encode()
    return Request(
        method, path.encode(), raw_query, headers, NoBody(), query=parse_query(raw_query)
    )


def example(
    method: str,
    target: str,
    signature: str,
    *,
    payload_hash: str = EMPTY,
    headers: dict[str, str] | None = None,
) -> Request:
    """A request of AWS's documentation, all of whose headers are signed."""
    signed = EXAMPLE_HEADERS | {"x-amz-content-sha256": payload_hash} | (headers or {})
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{SCOPE},"
        f"SignedHeaders={';'.join(sorted(signed))},Signature={signature}"
    )
    return request(method, target, signed | {"authorization": authorization})


def verified(it: Request, now_s: float) -> Identity:
    authorization = parse_authorization(it)
    return verify(it, authorization, SECRETS.get(authorization.access_key), now_s)


def refusal(it: Request, now_s: float = EXAMPLE_S) -> str:
    with pytest.raises(RequestError) as caught:
        verified(it, now_s)
    return caught.value.code


GET_EXAMPLE = example(
    "GET",
    "/test.txt",
    "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    headers={"range": "bytes=0-9"},
)
PUT_EXAMPLE = example(
    "PUT",
    "/test%24file.text",
    "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    payload_hash="44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
    headers={
        "date": "Fri, 24 May 2013 00:00:00 GMT",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
    },
)
LIFECYCLE_EXAMPLE = example(
    "GET", "/?lifecycle", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
)
LIST_EXAMPLE = example(
    "GET",
    "/?max-keys=2&prefix=J",
    "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
)
PRESIGNED = (
    "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    f"&X-Amz-Credential={ACCESS_KEY}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)
PRESIGNED_EXAMPLE = request("GET", PRESIGNED, {"host": "examplebucket.s3.amazonaws.com"})
CHUNKED_EXAMPLE = example(
    "PUT",
    "/examplebucket/chunkObject.txt",
    "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    payload_hash="STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    headers={
        "host": "s3.amazonaws.com",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
        "content-encoding": "aws-chunked",
        "x-amz-decoded-content-length": "66560",
        "content-length": "66824",
    },
)


@pytest.mark.parametrize(
    "published",
    [
        GET_EXAMPLE,
        PUT_EXAMPLE,
        LIFECYCLE_EXAMPLE,
        LIST_EXAMPLE,
        PRESIGNED_EXAMPLE,
        CHUNKED_EXAMPLE,
    ],
    ids=["get", "put", "lifecycle", "list", "presigned", "chunked"],
)
def test_the_published_examples_are_accepted(published: Request) -> None:
    assert verified(published, EXAMPLE_S).access_key == ACCESS_KEY


def test_the_published_frames_have_their_signatures() -> None:
    key = signing_key(SECRET_KEY, SCOPE)
    previous = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    for data, expected in (
        (b"a" * 65536, "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        (b"a" * 1024, "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        (b"", "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    ):
        sha256 = hashlib.sha256(data).hexdigest()
        previous = frame_signature(key, "20130524T000000Z", SCOPE, previous, sha256)
        assert previous == expected


def test_the_published_trailer_has_its_signature() -> None:
    key = signing_key(SECRET_KEY, SCOPE)
    previous = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
    for data, expected in (
        (b"a" * 65536, "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
        (b"a" * 1024, "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
        (b"", "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992"),
    ):
        sha256 = hashlib.sha256(data).hexdigest()
        previous = frame_signature(key, "20130524T000000Z", SCOPE, previous, sha256)
        assert previous == expected
    trailer = b"x-amz-checksum-crc32c:sOO8/Q==\n"
    assert trailer_signature(key, "20130524T000000Z", SCOPE, previous, trailer) == (
        "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
    )


# ---- botocore ----


def signed_by_botocore(
    url: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    data: bytes = b"",
    presigned: bool = False,
) -> tuple[Request, float]:
    """A request that botocore signed now, and the time of it."""
    aws = AWSRequest(method, url, headers=headers or {}, data=data)
    credentials = Credentials(ACCESS_KEY, SECRET_KEY)
    if presigned:
        S3SigV4QueryAuth(credentials, "s3", "eu-north-1", expires=60).add_auth(aws)
    else:
        S3SigV4Auth(credentials, "s3", "eu-north-1").add_auth(aws)
    sent = aws.prepare()
    parts = urlsplit(sent.url)
    received = {name.lower(): str(value) for name, value in sent.headers.items()}
    received.setdefault("host", parts.netloc)
    target = parts.path + ("?" + parts.query if parts.query else "")
    it = request(method, target, received)
    stamp = received.get("x-amz-date") or it.query["X-Amz-Date"]
    when = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return it, when.timestamp()


@pytest.mark.parametrize("presigned", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        "/bucket/key",
        "/bucket//a/../b//",
        "/bucket/a%20b%2Bc%25~(%C3%BC)",
        "/bucket?list-type=2&prefix=a%2Bb%20c&delimiter=%2F&max-keys=",
        "/bucket?uploads",
        "/",
    ],
)
def test_what_botocore_signs_is_accepted(target: str, presigned: bool) -> None:
    it, now_s = signed_by_botocore(
        f"http://127.0.0.1:9000{target}",
        headers={"x-amz-meta-spaces": "  a   b "},
        presigned=presigned,
    )
    identity = verified(it, now_s)
    assert identity.scope.region == "eu-north-1"
    assert identity.payload_hash == ("UNSIGNED-PAYLOAD" if presigned else EMPTY)


def test_a_path_that_a_proxy_encoded_less_is_still_accepted() -> None:
    it, now_s = signed_by_botocore("http://h/bucket/%7Ea%28b%29", presigned=True)
    verified(it, now_s)
    it, now_s = signed_by_botocore("http://h/bucket/a%28b%29", presigned=True)
    it.raw_path = b"/bucket/a(b)"
    verified(it, now_s)


# ---- refusals ----


@pytest.mark.parametrize(
    ("presigned", "code"),
    [(False, "AuthorizationHeaderMalformed"), (True, "AuthorizationQueryParametersError")],
)
def test_a_signature_of_another_region_is_told_the_right_one(presigned: bool, code: str) -> None:
    it, _ = signed_by_botocore("http://h/bucket/key", presigned=presigned)
    authorization = parse_authorization(it)
    check_region(authorization, "eu-north-1")
    with pytest.raises(S3Error) as caught:
        check_region(authorization, "us-east-1")
    assert (caught.value.code, caught.value.fields) == (code, {"Region": "us-east-1"})
    assert "'eu-north-1' is wrong; expecting 'us-east-1'" in caught.value.message


@pytest.mark.parametrize("change", ["method", "path", "query", "header", "payload"])
def test_any_change_breaks_the_signature(change: str) -> None:
    it, now_s = signed_by_botocore("http://h/bucket/key?partNumber=1", headers={"x-amz-acl": "p"})
    verified(it, now_s)
    match change:
        case "method":
            it.method = "HEAD"
        case "path":
            it.raw_path = b"/bucket/Key"
        case "query":
            it.raw_query = b"partNumber=2"
        case "header":
            it.headers["x-amz-acl"] = "q"
        case _:
            it.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"
    assert refusal(it, now_s) == "SignatureDoesNotMatch"


def test_a_header_that_counts_must_be_signed() -> None:
    it, now_s = signed_by_botocore("http://h/bucket/key")
    it.headers["x-amz-copy-source"] = "/bucket/secret"
    assert refusal(it, now_s) == "AccessDenied"


@pytest.mark.parametrize(("skew_s", "accepted"), [(899, True), (901, False), (-901, False)])
def test_clocks_may_differ_by_a_quarter_of_an_hour(skew_s: float, accepted: bool) -> None:
    if accepted:
        verified(GET_EXAMPLE, EXAMPLE_S + skew_s)
    else:
        assert refusal(GET_EXAMPLE, EXAMPLE_S + skew_s) == "RequestTimeTooSkewed"


def test_presigned_urls_expire() -> None:
    verified(PRESIGNED_EXAMPLE, EXAMPLE_S + 86400)
    assert refusal(PRESIGNED_EXAMPLE, EXAMPLE_S + 86401) == "AccessDenied"
    assert refusal(PRESIGNED_EXAMPLE, EXAMPLE_S - 901) == "AccessDenied"


@pytest.mark.parametrize("expires", ["604801", "-1", "x", "", "99999999999999999999"])
def test_presigned_urls_live_a_week_at_most(expires: str) -> None:
    target = PRESIGNED.replace("Expires=86400", f"Expires={expires}")
    assert refusal(request("GET", target, {"host": "h"})) == "AuthorizationQueryParametersError"


def test_unknown_keys_and_strangers_are_refused() -> None:
    with pytest.raises(RequestError, match="InvalidAccessKeyId"):
        verify(GET_EXAMPLE, parse_authorization(GET_EXAMPLE), None, EXAMPLE_S)
    assert refusal(request("GET", "/", {"host": "h"})) == "AccessDenied"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("AWS AKID:signature", "InvalidRequest"),
        ("Bearer token", "InvalidArgument"),
        ("", "InvalidArgument"),
        ("AWS4-HMAC-SHA256 nonsense", "AuthorizationHeaderMalformed"),
        ("AWS4-HMAC-SHA256 Credential=a/b/c,SignedHeaders=h", "AuthorizationHeaderMalformed"),
        (
            "AWS4-HMAC-SHA256 Credential=a/b,SignedHeaders=host,Signature=0",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130524/r/ec2/aws4_request,"
            "SignedHeaders=host,Signature=0",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20130525/r/s3/aws4_request,"
            "SignedHeaders=host,Signature=0",
            "AuthorizationHeaderMalformed",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{SCOPE},SignedHeaders=range,Signature=0",
            "AccessDenied",
        ),
        (
            f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{SCOPE},"
            "SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature=\xff",
            "SignatureDoesNotMatch",
        ),
    ],
)
def test_bad_authorizations_are_named(authorization: str, code: str) -> None:
    headers = EXAMPLE_HEADERS | {"x-amz-content-sha256": EMPTY, "authorization": authorization}
    assert refusal(request("GET", "/", headers)) == code


def test_a_date_must_be_one() -> None:
    headers = dict(GET_EXAMPLE.headers, **{"x-amz-date": "yesterday"})
    assert refusal(request("GET", "/test.txt", headers)) == "AccessDenied"


def test_an_identity_verifies_frames() -> None:
    identity = verified(CHUNKED_EXAMPLE, EXAMPLE_S)
    assert identity == Identity(
        ACCESS_KEY,
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        signing_key(SECRET_KEY, SCOPE),
        SCOPE,
        "20130524T000000Z",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        EXAMPLE_S,
    )
