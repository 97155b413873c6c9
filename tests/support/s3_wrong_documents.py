"""Wrong documents, forms and preflights."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from tests.support.s3_case import Case, Cases
from tests.support.s3_examples import FOREIGN, PART, POLICY, B, Example, form
from tests.support.s3_signer import ALGORITHM, REGION, Spec

_PAD = b" " * (4 << 20)
_LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
)


def documents(example: Example) -> Cases:
    """What is not XML, not safe, or not what S3's schema says; what is too large."""
    root, spec = example.document, example.spec
    if not root:
        return
    if root == "policy":
        yield from _policies(spec)
        return
    wrong = "MalformedACLError" if root == "AccessControlPolicy" else "MalformedXML"
    empty = {"AccessControlPolicy": "MissingSecurityHeader", "CreateBucketConfiguration": ""}
    inside = spec.body.partition(b">")[2].rpartition(b"<")[0]

    def case(name: str, body: bytes, code: str = wrong) -> Case:
        return Case(name, replace(spec, body=body), code)

    def around(head: str, inner: bytes = inside) -> bytes:
        return head.encode() + f"<{root}>".encode() + inner + f"</{root}>".encode()

    yield case("nothing", b"", empty.get(root, "MissingRequestBodyError"))
    yield case("no XML", b"{}")
    yield case("not closed", spec.body[:-3])
    yield case("another root", b"<Other>" + inside + b"</Other>")
    yield case("an unknown element", around("", inside + b"<Bogus>1</Bogus>"))
    yield case("a DTD", around("<!DOCTYPE x>"))
    yield case("an entity bomb", around(_LAUGHS, b"&i;"))
    yield case(
        "an outer entity", around('<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>', b"&f;")
    )
    yield case("an undefined entity", around("", b"&nbsp;"))
    yield case("not UTF-8", spec.body.replace(b"><", b">\xff<", 1))
    yield case("an unknown encoding", around('<?xml version="1.0" encoding="klingon"?>'))
    yield case("a null", spec.body.replace(b"><", b">\x00<", 1))
    yield case("deeper than can be", b"<a>" * 20_000 + b"</a>" * 20_000)
    yield case("too large", spec.body + _PAD, "MaxMessageLengthExceeded")
    first = inside[: inside.rfind(b"</" + _name_of(inside) + b">") + len(_name_of(inside)) + 3]
    if first and root not in _REPEATED:
        yield case("an element twice", around("", first + inside))
    for name, inner, code in _OF_ROOT.get(root, ()):
        if root != "Tagging" or code != "BadRequest" or spec.path != B:
            yield case(name, around("", inner.encode()), code)
    if root == "Tagging" and spec.path == B:
        yield case("51 tags", around("", _tags(51).encode()), "BadRequest")


#: Documents whose first element may be there several times.
_REPEATED = frozenset(
    {"CORSConfiguration", "CompleteMultipartUpload", "Delete", "LifecycleConfiguration"}
)


def _name_of(inside: bytes) -> bytes:
    return inside[1:].partition(b">")[0]


def _tags(count: int, key: str = "k{}", value: str = "v") -> str:
    one = "<Tag><Key>{}</Key><Value>{}</Value></Tag>"
    tags = "".join(one.format(key.format(number), value) for number in range(count))
    return f"<TagSet>{tags}</TagSet>"


def _parts(*numbers: int, etag: str = PART) -> str:
    one = "<Part><PartNumber>{}</PartNumber><ETag>{}</ETag></Part>"
    return "".join(one.format(number, etag) for number in numbers)


def _rules(action: str, count: int = 1, rule_filter: str = "<Filter/>") -> str:
    one = "<Rule><ID>r{}</ID>{}<Status>Enabled</Status>{}</Rule>"
    return "".join(one.format(number, rule_filter, action) for number in range(count))


_DAYS = "<Expiration><Days>{}</Days></Expiration>"
_CORS = "<CORSRule><AllowedOrigin>{}</AllowedOrigin><AllowedMethod>{}</AllowedMethod>{}</CORSRule>"
_INDEX = "<IndexDocument><Suffix>i</Suffix></IndexDocument>"
_ROUTE = "<RoutingRule>{}<Redirect>{}</Redirect></RoutingRule>"
_GRANT = (
    '<Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:type="CanonicalUser">{}</Grantee><Permission>{}</Permission></Grant>'
)
_DEFAULT = (
    "<Rule><ApplyServerSideEncryptionByDefault>{}</ApplyServerSideEncryptionByDefault></Rule>"
)
_LOCKS = (
    "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>{}"
    "</DefaultRetention></Rule>"
)
_WRONG, _ARGUMENT, _REQUEST, _TAG = (
    "MalformedXML",
    "InvalidArgument",
    "InvalidRequest",
    "InvalidTag",
)

#: What is wrong within a document of each kind: (name, what is in its root, code).
_OF_ROOT: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "AccelerateConfiguration": (("on", "<Status>Enabled</Status>", "NotImplemented"),),
    "AccessControlPolicy": (
        ("no list", "", "MalformedACLError"),
        (
            "no permission",
            f"<AccessControlList>{_GRANT.format('<ID>evil</ID>', 'FLY')}</AccessControlList>",
            "MalformedACLError",
        ),
        (
            "no grantee",
            f"<AccessControlList>{_GRANT.format('', 'READ')}</AccessControlList>",
            _ARGUMENT,
        ),
        (
            "another's grant",
            f"<AccessControlList>{_GRANT.format('<ID>evil</ID>', 'READ')}</AccessControlList>",
            "AccessControlListNotSupported",
        ),
        (
            "a grant by e-mail",
            "<AccessControlList>"
            f"{_GRANT.format('<EmailAddress>a@b.example</EmailAddress>', 'READ')}"
            "</AccessControlList>",
            "UnresolvableGrantByEmailAddress",
        ),
        (
            "101 grants",
            f"<AccessControlList>{_GRANT.format('<ID>evil</ID>', 'READ') * 101}"
            "</AccessControlList>",
            "MalformedACLError",
        ),
        ("another owner", "<Owner><ID>evil</ID></Owner><AccessControlList/>", "AccessDenied"),
    ),
    "BucketLoggingStatus": (
        ("on", "<LoggingEnabled><TargetBucket>x</TargetBucket></LoggingEnabled>", "NotImplemented"),
    ),
    "CORSConfiguration": (
        ("no rule", "", _WRONG),
        ("no origin", "<CORSRule><AllowedMethod>GET</AllowedMethod></CORSRule>", _WRONG),
        ("no method", "<CORSRule><AllowedOrigin>*</AllowedOrigin></CORSRule>", _WRONG),
        ("no such method", _CORS.format("*", "PATCH", ""), _REQUEST),
        ("two wildcards", _CORS.format("*.*", "GET", ""), _REQUEST),
        (
            "a wildcard exposed",
            _CORS.format("*", "GET", "<ExposeHeader>*</ExposeHeader>"),
            _REQUEST,
        ),
        ("no age", _CORS.format("*", "GET", "<MaxAgeSeconds>old</MaxAgeSeconds>"), _WRONG),
        ("101 rules", _CORS.format("*", "GET", "") * 101, _WRONG),
    ),
    "CompleteMultipartUpload": (
        ("no part", "", _WRONG),
        ("no ETag", "<Part><PartNumber>1</PartNumber></Part>", _WRONG),
        ("no number", f"<Part><ETag>{PART}</ETag></Part>", _WRONG),
        (
            "a number that is none",
            f"<Part><PartNumber>one</PartNumber><ETag>{PART}</ETag></Part>",
            _WRONG,
        ),
        ("part 0", _parts(0), _ARGUMENT),
        ("part 10001", _parts(10_001), "InvalidPart"),
        ("10001 parts", _parts(*range(1, 10_002)), _WRONG),
        ("another order", _parts(2, 1), "InvalidPartOrder"),
        ("a part twice", _parts(1, 1), "InvalidPartOrder"),
        ("a part that is not there", _parts(1, 7), "InvalidPart"),
        ("another ETag", _parts(1, etag="0" * 32), "InvalidPart"),
    ),
    "CreateBucketConfiguration": (
        ("a tag twice", _tags(2, "k").replace("TagSet", "Tags"), _TAG),
        ("51 tags", _tags(51).replace("TagSet", "Tags"), "BadRequest"),
        ("a directory bucket", "<Bucket><Type>Directory</Type></Bucket>", "NotImplemented"),
    ),
    "Delete": (
        ("no object", "", _WRONG),
        ("no key", "<Object/>", _WRONG),
        ("an empty key", "<Object><Key></Key></Object>", _WRONG),
        ("1001 keys", "<Object><Key>k</Key></Object>" * 1001, _WRONG),
        ("by size", "<Object><Key>k</Key><Size>1</Size></Object>", "NotImplemented"),
    ),
    "LegalHold": (
        ("no status", "", _WRONG),
        ("no such status", "<Status>MAYBE</Status>", _WRONG),
    ),
    "LifecycleConfiguration": (
        ("no rule", "", _WRONG),
        ("no status", f"<Rule><Filter/>{_DAYS.format(1)}</Rule>", _WRONG),
        ("no filter", _rules(_DAYS.format(1), rule_filter=""), _WRONG),
        ("no action", _rules(""), _REQUEST),
        ("0 days", _rules(_DAYS.format(0)), _ARGUMENT),
        ("no number of days", _rules(_DAYS.format("few")), _WRONG),
        (
            "days and date",
            _rules("<Expiration><Days>1</Days><Date>2030-01-01T00:00:00Z</Date></Expiration>"),
            _WRONG,
        ),
        (
            "no midnight",
            _rules("<Expiration><Date>2030-01-01T01:00:00Z</Date></Expiration>"),
            _ARGUMENT,
        ),
        ("no date", _rules("<Expiration><Date>soon</Date></Expiration>"), _WRONG),
        ("an id twice", _rules(_DAYS.format(1)) * 2, _ARGUMENT),
        ("an id too long", _rules(_DAYS.format(1)).replace("r0", "r" * 256), _ARGUMENT),
        ("1001 rules", _rules(_DAYS.format(1), 1001), _REQUEST),
        (
            "a transition",
            _rules("<Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>"),
            "NotImplemented",
        ),
        (
            "0 newer versions",
            _rules(
                "<NoncurrentVersionExpiration><NoncurrentDays>1"
                "</NoncurrentDays><NewerNoncurrentVersions>0</NewerNoncurrentVersions>"
                "</NoncurrentVersionExpiration>"
            ),
            _ARGUMENT,
        ),
        (
            "an upload by tags",
            _rules(
                "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1"
                "</DaysAfterInitiation></AbortIncompleteMultipartUpload>",
                rule_filter="<Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>",
            ),
            _REQUEST,
        ),
        (
            "two filters",
            _rules(
                _DAYS.format(1),
                rule_filter="<Filter><Prefix>p</Prefix>"
                "<ObjectSizeLessThan>5</ObjectSizeLessThan></Filter>",
            ),
            _WRONG,
        ),
    ),
    "NotificationConfiguration": (("on", "<EventBridgeConfiguration/>", "NotImplemented"),),
    "ObjectLockConfiguration": (
        ("not enabled", "<ObjectLockEnabled>Perhaps</ObjectLockEnabled>", _WRONG),
        ("no mode", _LOCKS.format("<Days>1</Days>"), _WRONG),
        ("no such mode", _LOCKS.format("<Mode>M</Mode><Days>1</Days>"), _WRONG),
        (
            "days and years",
            _LOCKS.format("<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>"),
            _WRONG,
        ),
        ("0 days", _LOCKS.format("<Mode>GOVERNANCE</Mode><Days>0</Days>"), _ARGUMENT),
        ("101 years", _LOCKS.format("<Mode>GOVERNANCE</Mode><Years>101</Years>"), _ARGUMENT),
        (
            "an event hold",
            _LOCKS.format("<Mode>GOVERNANCE</Mode><Days>1</Days><DefaultEventHold/>"),
            "NotImplemented",
        ),
    ),
    "OwnershipControls": (
        ("no rule", "", _WRONG),
        ("no such owner", "<Rule><ObjectOwnership>Me</ObjectOwnership></Rule>", _WRONG),
    ),
    "PublicAccessBlockConfiguration": (
        ("neither", "<BlockPublicAcls>perhaps</BlockPublicAcls>", _WRONG),
    ),
    "RequestPaymentConfiguration": (
        ("nobody", "", _WRONG),
        ("the requester", "<Payer>Requester</Payer>", "NotImplemented"),
    ),
    "Retention": (
        ("no date", "<Mode>GOVERNANCE</Mode>", _WRONG),
        ("no mode", "<RetainUntilDate>2099-01-01T00:00:00Z</RetainUntilDate>", _WRONG),
        (
            "no such mode",
            "<Mode>M</Mode><RetainUntilDate>2099-01-01T00:00:00Z</RetainUntilDate>",
            _WRONG,
        ),
        ("no date at all", "<Mode>GOVERNANCE</Mode><RetainUntilDate>x</RetainUntilDate>", _WRONG),
        (
            "less than is held",
            "<Mode>GOVERNANCE</Mode><RetainUntilDate>2098-01-01T00:00:00Z</RetainUntilDate>",
            "AccessDenied",
        ),
        ("an event hold", "<EventHold>ON</EventHold>", "NotImplemented"),
    ),
    "ServerSideEncryptionConfiguration": (
        ("no rule", "", _WRONG),
        ("no algorithm", _DEFAULT.format(""), _WRONG),
        ("no such algorithm", _DEFAULT.format("<SSEAlgorithm>ROT13</SSEAlgorithm>"), _WRONG),
        ("keys of KMS", _DEFAULT.format("<SSEAlgorithm>aws:kms</SSEAlgorithm>"), "NotImplemented"),
    ),
    "Tagging": (
        ("no set", "", _WRONG),
        ("no value", "<TagSet><Tag><Key>k</Key></Tag></TagSet>", _WRONG),
        ("a key twice", _tags(2, "k"), _TAG),
        ("11 tags", _tags(11), "BadRequest"),
        ("a key too long", _tags(1, "k" * 129), _TAG),
        ("an empty key", _tags(1, ""), _TAG),
        ("a value too long", _tags(1, "k", "v" * 257), _TAG),
        ("a key of AWS", _tags(1, "aws:k"), _TAG),
        ("another character", _tags(1, "k", "&lt;"), _TAG),
    ),
    "VersioningConfiguration": (
        ("no such status", "<Status>Maybe</Status>", _WRONG),
        ("no status", "", "IllegalVersioningConfigurationException"),
        ("MFA", "<Status>Enabled</Status><MfaDelete>Enabled</MfaDelete>", "NotImplemented"),
        ("suspended under lock", "<Status>Suspended</Status>", "InvalidBucketState"),
    ),
    "WebsiteConfiguration": (
        ("no index", "", _ARGUMENT),
        ("a slash in the index", "<IndexDocument><Suffix>a/b</Suffix></IndexDocument>", _ARGUMENT),
        (
            "all and more",
            "<RedirectAllRequestsTo><HostName>h</HostName></RedirectAllRequestsTo>" + _INDEX,
            _WRONG,
        ),
        (
            "no such status",
            _INDEX
            + "<RoutingRules>"
            + _ROUTE.format("", "<HttpRedirectCode>200</HttpRedirectCode>")
            + "</RoutingRules>",
            _ARGUMENT,
        ),
        (
            "no such protocol",
            _INDEX
            + "<RoutingRules>"
            + _ROUTE.format("", "<Protocol>ftp</Protocol>")
            + "</RoutingRules>",
            _ARGUMENT,
        ),
        (
            "51 rules",
            _INDEX
            + "<RoutingRules>"
            + _ROUTE.format("", "<HostName>h</HostName>") * 51
            + "</RoutingRules>",
            _REQUEST,
        ),
    ),
}


def _policies(spec: Spec) -> Cases:
    """Policies of buckets."""
    right = json.loads(POLICY)
    (statement,) = right["Statement"]

    def case(name: str, body: bytes, code: str = "MalformedPolicy") -> Case:
        return Case(name, replace(spec, body=body), code)

    def stating(**changes: object) -> bytes:
        return json.dumps({**right, "Statement": [{**statement, **changes}]}).encode()

    yield case("nothing", b"", "MissingRequestBodyError")
    yield case("no JSON", b"<Policy/>")
    yield case("not closed", spec.body[:-1])
    yield case("a list", b"[]")
    yield case("not UTF-8", b'{"Version": "\xff"}')
    yield case("deeper than can be", b"[" * 20_000)
    yield case("an unknown element", json.dumps({**right, "Bogus": 1}).encode())
    yield case("another version", json.dumps({**right, "Version": "2099-01-01"}).encode())
    yield case("no statement", json.dumps({**right, "Statement": []}).encode())
    yield case("no effect", stating(Effect="Perhaps"))
    yield case("no such action", stating(Action="s3:Fly"))
    yield case("no principal", stating(Principal={}))
    yield case("another bucket", stating(Resource=f"arn:aws:s3:::{FOREIGN}/*"))
    yield case("no ARN", stating(Resource="everything"))
    yield case("an unknown operator", stating(Condition={"Smells": {"aws:SourceIp": "10.0.0.1"}}))
    yield case("an unknown key", stating(Condition={"StringEquals": {"s3:mood": "good"}}))
    yield case("no address", stating(Condition={"IpAddress": {"aws:SourceIp": "here"}}))
    yield case("more than 20 KiB", stating(Sid="x" * 21_000))
    yield case("too large", spec.body + _PAD, "MaxMessageLengthExceeded")


# ---- forms and preflights ----


def _signed_form(example: Example, now_s: float, **changes: str | None) -> dict[str, str]:
    """The fields of a form with a policy, signed by ANN; None leaves a field out."""
    when = datetime.fromtimestamp(now_s, UTC)
    scope = f"{when:%Y%m%d}/{REGION}/s3/aws4_request"
    expiration = changes.pop("expiration", None) or "2099-01-01T00:00:00Z"
    policy = {
        "expiration": expiration,
        "conditions": [
            {"bucket": example.spec.path[1:]},
            ["starts-with", "$key", "form/"],
            ["content-length-range", 1, 100],
            {"x-amz-algorithm": ALGORITHM},
            {"x-amz-credential": f"ANN/{scope}"},
            {"x-amz-date": f"{when:%Y%m%dT%H%M%SZ}"},
        ],
    }
    encoded = base64.b64encode(json.dumps(policy).encode()).decode()
    key = b"AWS4" + b"ann-secret"
    for text in scope.split("/"):
        key = hmac.digest(key, text.encode(), "sha256")
    fields: dict[str, str | None] = {
        "key": "form/one",
        "x-amz-algorithm": ALGORITHM,
        "x-amz-credential": f"ANN/{scope}",
        "x-amz-date": f"{when:%Y%m%dT%H%M%SZ}",
        "policy": encoded,
        "x-amz-signature": hmac.new(key, encoded.encode(), hashlib.sha256).hexdigest(),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return {name: value for name, value in fields.items() if value is not None}


def right_form(example: Example, now_s: float) -> Spec:
    """A form that is taken."""
    return form(example.spec, _signed_form(example, now_s))


def forms(example: Example, now_s: float) -> Cases:
    """Uploads by forms; local, because who signs them is not of a cluster."""
    if "form" not in example.traits:
        return

    def case(name: str, code: str, content: bytes = b"file", **changes: str | None) -> Case:
        fields = _signed_form(example, now_s, **changes)
        return Case(name, form(example.spec, fields, content), code, is_local=True)

    yield case("another signature", "SignatureDoesNotMatch", x_amz_signature="0" * 64)
    yield case("no signature", "InvalidArgument", x_amz_signature=None)
    yield case("no policy", "InvalidArgument", policy=None)
    yield case("another policy", "SignatureDoesNotMatch", policy="e30=")
    yield case(
        "an unknown key",
        "InvalidAccessKeyId",
        x_amz_credential=f"WHO/20260101/{REGION}/s3/aws4_request",
    )
    yield case("another algorithm", "InvalidArgument", x_amz_algorithm="AWS4-HMAC-SHA1")
    yield case("version 2", "InvalidRequest", AWSAccessKeyId="ANN")
    yield case("expired", "AccessDenied", expiration="2001-01-01T00:00:00Z")
    yield case("no expiration", "InvalidPolicyDocument", expiration="soon")
    yield case("no key", "InvalidArgument", key=None)
    yield case("another key", "AccessDenied", key="elsewhere")
    yield case("a field too many", "AccessDenied", x_amz_meta_more="x")
    yield case("too small", "EntityTooSmall", b"")
    yield case("too large", "EntityTooLarge", b"x" * 101)
    yield case("fields too large", "MaxPostPreDataLengthExceededError", tagging="x" * 70_000)
    fields = _signed_form(example, now_s)
    yield Case("no file", form(example.spec, fields, name=""), "InvalidArgument", is_local=True)
    whole = form(example.spec, fields)
    yield Case("cut off", replace(whole, body=whole.body[:-9]), "IncompleteBody", is_local=True)
    broken = replace(whole, headers={"content-type": "multipart/form-data"})
    yield Case("no boundary", broken, "MalformedPOSTRequest", is_local=True)
    anonymous = form(example.spec, {"key": "form/two"})
    yield Case("nobody signs", anonymous, "AccessDenied")
    yield Case("another tenant's", replace(anonymous, path=f"/{FOREIGN}"), "AccessDenied")
    yield Case("no such bucket", replace(anonymous, path="/matrix-none"), "NoSuchBucket")


def right_preflight(example: Example) -> Spec:
    """A preflight that is allowed."""
    headers = {"origin": "https://page.example", "access-control-request-method": "GET"}
    return replace(example.spec, headers=headers, access_key="")


def preflights(example: Example) -> Cases:
    """What browsers ask before they send, wrongly."""
    if "preflight" not in example.traits:
        return
    right = right_preflight(example)
    origin, method = dict(right.headers).items()
    foreign = replace(right, path=right.path.replace(B, f"/{FOREIGN}"))
    yield Case("no origin", replace(right, headers=dict([method])), "BadRequest")
    yield Case("no method", replace(right, headers=dict([origin])), "BadRequest")
    wanted = right.with_headers(access_control_request_method="FLY")
    yield Case("no such method", wanted, "BadRequest")
    yield Case(
        "another origin", right.with_headers(origin="https://evil.example"), "AccessForbidden"
    )
    put = right.with_headers(access_control_request_method="PUT")
    yield Case("another method", put, "AccessForbidden")
    header = right.with_headers(access_control_request_headers="x-secret")
    yield Case("another header", header, "AccessForbidden")
    yield Case("no rules", foreign, "AccessForbidden")
    none = replace(right, path=right.path.replace(B, "/matrix-none"))
    yield Case("no such bucket", none, "NoSuchBucket")
