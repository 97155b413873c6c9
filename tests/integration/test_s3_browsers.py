"""Origins, forms, websites, and features that are off: browsers and SDKs at the real front."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest
from tests.support.s3_front import ORIGIN, Front, code_of, put_policy

pytestmark = pytest.mark.integration


# ---- origins ----

RULES = {
    "CORSRules": [
        {
            "AllowedOrigins": ["https://*.example"],
            "AllowedMethods": ["GET", "PUT"],
            "AllowedHeaders": ["x-amz-*", "content-type"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 600,
        },
        {"AllowedOrigins": ["*"], "AllowedMethods": ["HEAD"]},
    ]
}


def test_pages_of_allowed_origins_may_read(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    assert code_of(ann.get_bucket_cors, Bucket=bucket) == "NoSuchCORSConfiguration"
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
    assert front.request("OPTIONS", f"/{bucket}/k", headers=asked)[0] == 403
    ann.put_bucket_cors(Bucket=bucket, CORSConfiguration=RULES)
    assert ann.get_bucket_cors(Bucket=bucket)["CORSRules"] == RULES["CORSRules"]
    asked["Access-Control-Request-Headers"] = "X-Amz-Date, Content-Type"
    status, headers, _ = front.request("OPTIONS", f"/{bucket}/k?uploads", headers=asked)
    assert status == 200
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["access-control-allow-methods"] == "GET, PUT"
    assert headers["access-control-allow-headers"] == "x-amz-date, content-type"
    assert headers["access-control-max-age"] == "600"
    assert headers["vary"].startswith("Origin")
    for changes in (
        {"Origin": "https://other.test"},
        {"Access-Control-Request-Method": "DELETE"},
        {"Access-Control-Request-Headers": "x-other"},
    ):
        refused = front.request("OPTIONS", f"/{bucket}/k", headers={**asked, **changes})
        assert refused[0] == 403 and b"AccessForbidden" in refused[2]
    assert front.request("OPTIONS", f"/{bucket}/k")[0] == 400
    put_policy(front, bucket, {})
    status, headers, body = front.request("GET", f"/{bucket}/k", headers={"Origin": ORIGIN})
    assert (status, body) == (200, b"hello")
    assert headers["access-control-allow-origin"] == ORIGIN
    assert headers["access-control-expose-headers"] == "ETag"
    status, headers, _ = front.request("GET", f"/{bucket}/none", headers={"Origin": ORIGIN})
    assert status == 403 and headers["access-control-allow-origin"] == ORIGIN
    _, headers, _ = front.request("HEAD", f"/{bucket}/k", headers={"Origin": "https://x.test"})
    assert headers["access-control-allow-origin"] == "*"
    _, headers, _ = front.request("GET", f"/{bucket}/k", headers={"Origin": "https://x.test"})
    assert "access-control-allow-origin" not in headers and "vary" in headers
    assert "vary" not in front.request("GET", f"/{bucket}/k")[1]
    ann.delete_bucket_cors(Bucket=bucket)
    assert code_of(ann.get_bucket_cors, Bucket=bucket) == "NoSuchCORSConfiguration"


def test_wrong_rules_are_refused(front: Front, bucket: str) -> None:
    ann = front.client("ANN")

    def code(**rule: Any) -> str:
        base = {"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]}
        rules = {"CORSRules": [{**base, **rule}]}
        return code_of(ann.put_bucket_cors, Bucket=bucket, CORSConfiguration=rules)

    assert code(AllowedMethods=["PATCH"]) == "InvalidRequest"
    assert code(AllowedOrigins=["*.*"]) == "InvalidRequest"
    assert code(ExposeHeaders=["x-*"]) == "InvalidRequest"
    assert code(ExposeHeaders=["a\nb: c"]) == "InvalidRequest"
    assert code(AllowedOrigins=[]) == "MalformedXML"


# ---- forms ----


def form(fields: Mapping[str, str], data: bytes, file_name: str = "a.txt") -> tuple[bytes, str]:
    boundary = "----boundary7MA4YWxk"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
        "Content-Type: text/plain\r\n\r\n".encode()
    )
    parts.append(data + f"\r\n--{boundary}--\r\n".encode())
    return b"".join(parts), f"multipart/form-data; boundary={boundary}"


def post(
    front: Front,
    bucket: str,
    data: bytes = b"posted",
    *,
    name: str = "ANN",
    key: str = "up/${filename}",
    conditions: list[Any] | None = None,
    fields: Mapping[str, str] | None = None,
    expires_s: int = 60,
) -> tuple[int, dict[str, str], bytes]:
    extra = dict(fields or {})
    signed = front.client(name).generate_presigned_post(
        bucket,
        key,
        Fields=dict(extra),
        Conditions=[{field: value} for field, value in extra.items()] + (conditions or []),
        ExpiresIn=expires_s,
    )
    body, content_type = form(signed["fields"], data)
    return front.request("POST", f"/{bucket}", body=body, headers={"Content-Type": content_type})


def test_a_form_uploads_what_its_policy_permits(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    data = b"x" * 300_000 + b"\r\n--\r\n"
    status, headers, _ = post(
        front, bucket, data, fields={"Content-Type": "text/css", "x-amz-meta-a": "ü"}
    )
    assert status == 204 and headers["location"] == f"/{bucket}/up/a.txt"
    found = ann.get_object(Bucket=bucket, Key="up/a.txt")
    assert found["Body"].read() == data
    assert found["ContentType"] == "text/css"
    status, _, body = post(front, bucket, fields={"success_action_status": "201"})
    assert status == 201 and b"<PostResponse" in body and b"<Key>up/a.txt</Key>" in body
    status, headers, _ = post(
        front, bucket, key="é", fields={"success_action_redirect": "http://x.test/done?a=b"}
    )
    assert status == 303
    assert headers["location"].startswith(f"http://x.test/done?a=b&bucket={bucket}&key=%C3%A9")
    assert post(front, bucket, fields={"success_action_redirect": "javascript:1"})[0] == 204


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"name": "EVE"}, 403, b"AccessDenied"),
        ({"expires_s": -5}, 403, b"Policy expired"),
        ({"conditions": [["content-length-range", 0, 3]]}, 400, b"EntityTooLarge"),
        ({"conditions": [["content-length-range", 10, 99]]}, 400, b"EntityTooSmall"),
        ({"conditions": [["starts-with", "$x-amz-meta-b", "no"]]}, 403, b"Condition failed"),
        ({"conditions": [["eq", "$acl", "private"]]}, 403, b"Condition failed"),
        ({"conditions": ["nonsense"]}, 400, b"InvalidPolicyDocument"),
    ],
)
def test_a_form_that_breaks_its_policy_stores_nothing(
    front: Front, bucket: str, changes: Mapping[str, Any], status: int, code: bytes
) -> None:
    found, _, body = post(front, bucket, key="never", **changes)
    assert found == status and code in body
    keys = [o["Key"] for o in front.client("ANN").list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["k"]


def test_forms_that_are_tampered_with_are_refused(front: Front, bucket: str) -> None:
    signed = front.client("ANN").generate_presigned_post(bucket, "k2")["fields"]

    def send(fields: Mapping[str, str], cut: int | None = None) -> bytes:
        body, content_type = form(fields, b"data")
        headers = {"Content-Type": content_type}
        return front.request("POST", f"/{bucket}", body=body[:cut], headers=headers)[2]

    assert b"SignatureDoesNotMatch" in send({**signed, "x-amz-signature": "0" * 64})
    assert b"SignatureDoesNotMatch" in send({**signed, "policy": signed["policy"][:-4]})
    assert b"Extra input fields" in send({**signed, "acl": "private"})
    assert b"Condition failed" in send({**signed, "key": "other"})
    assert b"InvalidAccessKeyId" in send(
        {**signed, "x-amz-credential": "NO/20260101/us-east-1/s3/aws4_request"}
    )
    assert b"AuthorizationHeaderMalformed" in send({**signed, "x-amz-credential": "x"})
    assert b"InvalidArgument" in send({k: v for k, v in signed.items() if k != "key"})
    assert b"InvalidArgument" in send({k: v for k, v in signed.items() if k != "x-amz-date"})
    assert b"InvalidRequest" in send({"key": "k", "AWSAccessKeyId": "ANN", "signature": "x"})
    assert b"AccessDenied" in send({"key": "k2"})
    assert b"MaxPostPreDataLengthExceeded" in send({"key": "k", "pad": "x" * 70_000})
    assert b"IncompleteBody" in send(signed, cut=-30)
    status, _, body = front.request(
        "POST", f"/{bucket}", body=b"x", headers={"Content-Type": "multipart/form-data"}
    )
    assert status == 400 and b"MalformedPOSTRequest" in body
    put_policy(front, bucket, {"Action": "s3:PutObject"})
    assert send({"key": "k2"}) == b""
    keys = [o["Key"] for o in front.client("ANN").list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["k", "k2"]


# ---- websites ----


def test_a_bucket_is_a_website(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    assert code_of(ann.get_bucket_website, Bucket=bucket) == "NoSuchWebsiteConfiguration"
    site = {
        "IndexDocument": {"Suffix": "index.html"},
        "ErrorDocument": {"Key": "lost.html"},
        "RoutingRules": [
            {
                "Condition": {"KeyPrefixEquals": "old/"},
                "Redirect": {"ReplaceKeyPrefixWith": "new/", "HttpRedirectCode": "302"},
            }
        ],
    }
    ann.put_bucket_website(Bucket=bucket, WebsiteConfiguration=site)
    found = ann.get_bucket_website(Bucket=bucket)
    assert found["IndexDocument"] == site["IndexDocument"]
    for key in ("index.html", "docs/index.html", "lost.html"):
        ann.put_object(Bucket=bucket, Key=key, Body=key.encode(), ContentType="text/html")
    host = {"Host": f"{bucket}.web.test"}
    assert front.request("GET", "/", headers=host)[0] == 403, "nobody may read yet"
    put_policy(
        front,
        bucket,
        {},
        {"Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{bucket}"},
    )
    status, headers, body = front.request("GET", "/", headers=host)
    assert (status, body, headers["content-type"]) == (200, b"index.html", "text/html")
    assert front.request("GET", "/docs/?x=y", headers=host)[2] == b"docs/index.html"
    status, headers, _ = front.request("GET", "/docs", headers=host)
    assert (status, headers["location"]) == (302, f"http://{bucket}.web.test/docs/")
    assert front.request("GET", "/none", headers=host)[::2] == (404, b"lost.html")
    assert front.request("HEAD", "/none", headers=host)[::2] == (404, b"")
    status, headers, _ = front.request("GET", "/old/a%20b", headers=host)
    assert (status, headers["location"]) == (302, f"http://{bucket}.web.test/new/a%20b")
    assert front.request("PUT", "/x", headers=host, body=b"")[0] == 405
    ann.delete_object(Bucket=bucket, Key="lost.html")
    status, _, body = front.request("GET", "/<b>", headers=host)
    assert status == 404 and b"NoSuchKey" in body and b"<b>" not in body
    everything = {"RedirectAllRequestsTo": {"HostName": "x.test", "Protocol": "https"}}
    ann.put_bucket_website(Bucket=bucket, WebsiteConfiguration=everything)
    status, headers, _ = front.request("GET", "/a", headers=host)
    assert (status, headers["location"]) == (301, "https://x.test/a")
    ann.delete_bucket_website(Bucket=bucket)
    assert front.request("GET", "/", headers=host)[0] == 404
    wrong = {"IndexDocument": {"Suffix": "a/b"}}
    assert (
        code_of(ann.put_bucket_website, Bucket=bucket, WebsiteConfiguration=wrong)
        == "InvalidArgument"
    )


def test_a_bucket_is_a_host_name(front: Front, bucket: str) -> None:
    put_policy(front, bucket, {})
    host = {"Host": f"{bucket}.s3.test"}
    assert front.request("GET", f"/{quote('k')}", headers=host)[2] == b"hello"


# ---- what is off ----


def test_features_that_are_off_are_told_so(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    ann.get_bucket_accelerate_configuration(Bucket=bucket)
    ann.put_bucket_accelerate_configuration(
        Bucket=bucket, AccelerateConfiguration={"Status": "Suspended"}
    )
    assert "LoggingEnabled" not in ann.get_bucket_logging(Bucket=bucket)
    ann.put_bucket_logging(Bucket=bucket, BucketLoggingStatus={})
    ann.get_bucket_notification_configuration(Bucket=bucket)
    ann.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    assert ann.get_bucket_request_payment(Bucket=bucket)["Payer"] == "BucketOwner"
    owner = {"Payer": "BucketOwner"}
    ann.put_bucket_request_payment(Bucket=bucket, RequestPaymentConfiguration=owner)
    for kind in ("analytics", "inventory", "metrics", "intelligent_tiering"):
        listed = getattr(ann, f"list_bucket_{kind}_configurations")(Bucket=bucket)
        assert not listed.get("IsTruncated")
        get = getattr(ann, f"get_bucket_{kind}_configuration")
        assert code_of(get, Bucket=bucket, Id="x") == "NoSuchConfiguration"
    code = code_of(ann.get_bucket_replication, Bucket=bucket)
    assert code == "ReplicationConfigurationNotFoundError"


def test_features_that_are_off_cannot_be_turned_on(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    logging = {"LoggingEnabled": {"TargetBucket": bucket, "TargetPrefix": "l/"}}
    faster = {"Status": "Enabled"}
    tried: list[tuple[Any, dict[str, Any]]] = [
        (ann.put_bucket_logging, {"BucketLoggingStatus": logging}),
        (
            ann.put_bucket_accelerate_configuration,
            {"AccelerateConfiguration": faster},
        ),
        (ann.put_bucket_request_payment, {"RequestPaymentConfiguration": {"Payer": "Requester"}}),
    ]
    for call, arguments in tried:
        assert code_of(call, Bucket=bucket, **arguments) == "NotImplemented"
