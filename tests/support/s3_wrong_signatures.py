"""Wrong signatures, in the header and in the query, for every operation that is signed."""

from collections.abc import Callable
from dataclasses import replace

from tests.support.s3_case import Case, Cases, is_signed
from tests.support.s3_examples import Example
from tests.support.s3_signer import Wire


def signatures(example: Example) -> Cases:
    """Signed in the header, wrongly."""
    if not is_signed(example):
        return
    spec = example.spec
    yield Case("the secret is another", replace(spec, secret="other"), "SignatureDoesNotMatch")
    yield Case("the key is unknown", replace(spec, access_key="WHO"), "InvalidAccessKeyId")
    # A batch is decided key by key, and told apart from what its signature would have said.
    code = "InvalidRequest" if example.document == "Delete" else "AccessDenied"
    yield Case("nobody signs", replace(spec, access_key=""), code)
    yield Case("the clock is behind", replace(spec, skew_s=-1000), "RequestTimeTooSkewed")
    yield Case("the clock is ahead", replace(spec, skew_s=1000), "RequestTimeTooSkewed")
    malformed = "AuthorizationHeaderMalformed"
    yield Case("the region is another", replace(spec, region="mars-1"), malformed, is_local=True)
    yield Case("the service is another", replace(spec, service="ec2"), malformed)
    yield Case("the scope has another day", replace(spec, scope_date="20200101"), malformed)
    yield Case("a token", spec.with_headers(x_amz_security_token="t"), "InvalidToken")
    yield Case("the date is none", spec.with_headers(x_amz_date="yesterday"), "AccessDenied")
    yield Case(
        "the payload hash is none", replace(spec, payload_hash="not-a-hash"), "InvalidArgument"
    )

    def tampered(name: str, code: str, tamper: Callable[[Wire], Wire]) -> Case:
        return Case(name, spec, code, tamper)

    yield tampered(
        "the query is changed",
        "SignatureDoesNotMatch",
        lambda it: replace(it, query=it.query + "&x=1" if it.query else "x=1"),
    )
    if spec.path != "/":
        yield tampered(
            "the path is changed",
            "SignatureDoesNotMatch",
            lambda it: replace(it, path=it.path + "x"),
        )
    yield tampered(
        "a signed header is gone",
        "SignatureDoesNotMatch",
        lambda it: it.changed(
            authorization=it.headers["authorization"].replace(
                "SignedHeaders=", "SignedHeaders=accept;"
            )
        ),
    )
    yield tampered(
        "a header is not signed", "AccessDenied", lambda it: it.changed(x_amz_meta_more="x")
    )
    yield tampered(
        "the host is not signed",
        "AccessDenied",
        lambda it: it.changed(authorization=it.headers["authorization"].replace("host;", "")),
    )
    yield tampered(
        "no payload hash", "InvalidRequest", lambda it: it.changed(x_amz_content_sha256=None)
    )
    yield tampered("no date", "AccessDenied", lambda it: it.changed(x_amz_date=None))
    for name, value, code in (
        ("nothing behind the algorithm", "AWS4-HMAC-SHA256", malformed),
        (
            "no signature",
            "AWS4-HMAC-SHA256 Credential=a/b/c/s3/aws4_request, SignedHeaders=host",
            malformed,
        ),
        ("no credential", "AWS4-HMAC-SHA256 SignedHeaders=host, Signature=00", malformed),
        (
            "half a credential",
            "AWS4-HMAC-SHA256 Credential=ANN, SignedHeaders=host, Signature=0",
            malformed,
        ),
        ("version 2", "AWS ANN:c2ln", "InvalidRequest"),
        ("another scheme", "Basic QU5OOnNlY3JldA==", "InvalidArgument"),
    ):
        yield tampered(name, code, _authorized(value))
    if spec.body:
        yield tampered(
            "the body is changed",
            "XAmzContentSHA256Mismatch",
            lambda it: replace(it, body=b"X" + it.body[1:]),
        )


def presigned(example: Example) -> Cases:
    """Signed in the query, wrongly."""
    if not is_signed(example):
        return
    spec, wrong = replace(example.spec, expires="600"), "AuthorizationQueryParametersError"
    yield Case("expired", replace(spec, skew_s=-601), "AccessDenied")
    yield Case("not yet valid", replace(spec, skew_s=1000), "AccessDenied")
    yield Case("more than a week", replace(spec, expires="604801"), wrong)
    yield Case("a negative time", replace(spec, expires="-1"), wrong)
    yield Case("no number of seconds", replace(spec, expires="soon"), wrong)
    yield Case("the secret is another", replace(spec, secret="other"), "SignatureDoesNotMatch")
    yield Case("the key is unknown", replace(spec, access_key="WHO"), "InvalidAccessKeyId")
    yield Case("the service is another", replace(spec, service="ec2"), wrong)
    yield Case("the region is another", replace(spec, region="mars-1"), wrong, is_local=True)
    for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"):
        # Without the algorithm it is no presigned request at all, but it claims a signature.
        code = "AccessDenied" if name == "Algorithm" else wrong
        yield Case(f"without {name}", spec, code, _parameter(name))
    for name, value in (("Algorithm", "AWS4-HMAC-SHA1"), ("Credential", "ANN"), ("Date", "today")):
        yield Case(f"a wrong {name}", spec, wrong, _parameter(name, value))
    yield Case(
        "both ways",
        spec,
        "InvalidArgument",
        lambda it: it.changed(authorization="AWS4-HMAC-SHA256 Credential=a"),
    )
    yield Case(
        "the query is changed",
        spec,
        "SignatureDoesNotMatch",
        lambda it: replace(it, query=it.query + "&x=1"),
    )


def _authorized(value: str) -> Callable[[Wire], Wire]:
    """Replaces the Authorization header."""
    return lambda wire: wire.changed(authorization=value)


def _parameter(name: str, value: str = "") -> Callable[[Wire], Wire]:
    """Replaces a parameter of a presigned URL, or takes it away."""

    def tamper(wire: Wire) -> Wire:
        pairs = [it for it in wire.query.split("&") if not it.startswith(f"X-Amz-{name}=")]
        return replace(
            wire, query="&".join([*pairs, *([f"X-Amz-{name}={value}"] if value else [])])
        )

    return tamper
