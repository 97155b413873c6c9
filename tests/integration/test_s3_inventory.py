"""Configurations of inventories as boto3 sees them."""

from typing import Any

import pytest
from tests.support.s3_front import Front, code_of

pytestmark = pytest.mark.integration


def configuration(name: str, destination: str, **changes: Any) -> dict[str, Any]:
    place = {"Bucket": f"arn:aws:s3:::{destination}", "Format": "Parquet", "Prefix": "in"}
    return {
        "Id": name,
        "InventoryConfiguration": {
            "Destination": {"S3BucketDestination": place | changes.pop("place", {})},
            "IsEnabled": True,
            "Id": name,
            "IncludedObjectVersions": "Current",
            "OptionalFields": ["Size", "ETag"],
            "Schedule": {"Frequency": "Daily"},
            **changes,
        },
    }


def test_configurations_are_kept_by_their_ids(front: Front, bucket: str) -> None:
    ann, place = front.client("ANN"), {"Bucket": bucket}
    assert "InventoryConfigurationList" not in ann.list_bucket_inventory_configurations(**place)
    for number in range(102):
        wanted = configuration(f"i{number:03d}", bucket, Filter={"Prefix": "p"})
        ann.put_bucket_inventory_configuration(**place, **wanted)
    found = ann.get_bucket_inventory_configuration(**place, Id="i007")["InventoryConfiguration"]
    wanted = configuration("i007", bucket, Filter={"Prefix": "p"})
    assert found == wanted["InventoryConfiguration"]
    first = ann.list_bucket_inventory_configurations(**place)
    assert first["IsTruncated"] and len(first["InventoryConfigurationList"]) == 100
    token = first["NextContinuationToken"]
    rest = ann.list_bucket_inventory_configurations(**place, ContinuationToken=token)
    assert [it["Id"] for it in rest["InventoryConfigurationList"]] == ["i100", "i101"]
    assert not rest["IsTruncated"]
    ann.delete_bucket_inventory_configuration(**place, Id="i007")
    for call in (ann.get_bucket_inventory_configuration, ann.delete_bucket_inventory_configuration):
        assert code_of(call, **place, Id="i007") == "NoSuchConfiguration"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"place": {"Bucket": "no-arn"}}, "InvalidS3DestinationBucket"),
        ({"place": {"Bucket": "arn:aws:s3:::there-is-none"}}, "InvalidS3DestinationBucket"),
        ({"place": {"Format": "XML"}}, "MalformedXML"),
        ({"place": {"Encryption": {"SSEKMS": {"KeyId": "k"}}}}, "NotImplemented"),
        ({"Schedule": {"Frequency": "Hourly"}}, "MalformedXML"),
        ({"OptionalFields": ["Smell"]}, "MalformedXML"),
        ({"OptionalFields": ["Size", "Size"]}, "MalformedXML"),
        ({"Id": "other"}, "InvalidArgument"),
        ({"Id": "no spaces"}, "InvalidConfigurationId"),
    ],
)
def test_wrong_configurations_are_refused(
    front: Front, bucket: str, changes: dict[str, Any], code: str
) -> None:
    ann = front.client("ANN")
    wanted = configuration("one", bucket, **changes)
    assert code_of(ann.put_bucket_inventory_configuration, Bucket=bucket, **wanted) == code


def test_reports_stay_within_a_tenant(front: Front, bucket: str) -> None:
    ann, eve = front.client("ANN"), front.client("EVE")
    eve.create_bucket(Bucket=f"{bucket}-eve")
    wanted = configuration("one", f"{bucket}-eve")
    code = code_of(ann.put_bucket_inventory_configuration, Bucket=bucket, **wanted)
    assert code == "InvalidS3DestinationBucket"
    own = configuration("one", bucket)
    code = code_of(eve.put_bucket_inventory_configuration, Bucket=bucket, **own)
    assert code == "AccessDenied"
