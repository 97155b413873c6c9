"""minio-py: the client of MinIO."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
import urllib3
from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.deleteobjects import DeleteObject
from tests.integration.clients.conftest import MIB, Bucket, some_bytes

pytestmark = pytest.mark.integration


def test_minio_py_uploads_composes_presigns_and_deletes(bucket: Bucket, tmp_path: Path) -> None:
    with urllib3.PoolManager() as pool:
        client = Minio(
            bucket.host,
            access_key=bucket.access_key,
            secret_key=bucket.secret_key,
            secure=False,
            region="us-east-1",
            http_client=pool,
        )
        large = some_bytes(12 * MIB + 9, 13)
        client.put_object(bucket.name, "large", io.BytesIO(large), length=-1, part_size=5 * MIB)
        stored = client.stat_object(bucket.name, "large")
        assert (stored.size, (stored.etag or "")[-2:]) == (len(large), "-3")
        client.fget_object(bucket.name, "large", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == large
        answer = client.get_object(bucket.name, "large", offset=5 * MIB, length=100)
        assert answer.read() == large[5 * MIB :][:100]
        answer.release_conn()
        for number in range(20):
            client.put_object(
                bucket.name, f"many/{number:02d}", io.BytesIO(b"x"), 1, metadata={"color": "blue"}
            )
        found = client.list_objects(bucket.name, prefix="many/", recursive=True)
        names = [str(item.object_name) for item in found]
        assert names == [f"many/{number:02d}" for number in range(20)]
        client.copy_object(bucket.name, "copied", CopySource(bucket.name, "many/00"))
        copied = client.stat_object(bucket.name, "copied").metadata or {}
        assert copied["x-amz-meta-color"] == "blue"
        client.compose_object(
            bucket.name,
            "composed",
            [
                ComposeSource(bucket.name, "large", offset=0, length=6 * MIB),
                ComposeSource(bucket.name, "large", offset=6 * MIB, length=6 * MIB + 9),
            ],
        )
        assert bucket.get("composed") == large
        url = client.presigned_get_object(bucket.name, "copied", expires=timedelta(minutes=5))
        assert pool.request("GET", url).data == b"x"
        url = client.presigned_put_object(bucket.name, "signed", expires=timedelta(minutes=5))
        assert pool.request("PUT", url, body=b"signed").status == 200
        errors = client.remove_objects(bucket.name, [DeleteObject(name) for name in names])
        assert list(errors) == []
        assert bucket.content == {
            "composed": large,
            "copied": b"x",
            "large": large,
            "signed": b"signed",
        }
