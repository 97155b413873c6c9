"""s3cmd: put, multipart put, sync, get, copy, delete."""

import sys
from pathlib import Path

import pytest
from tests.integration.clients.conftest import Bucket, files_under

pytestmark = pytest.mark.integration


def test_s3cmd_syncs_gets_and_deletes(
    bucket: Bucket, tree: dict[str, bytes], tmp_path: Path
) -> None:
    config = tmp_path / "s3cfg"
    config.write_text(
        f"[default]\nhost_base = {bucket.host}\nhost_bucket = {bucket.host}\nuse_https = False\n"
        f"access_key = {bucket.access_key}\nsecret_key = {bucket.secret_key}\n"
        "multipart_chunk_size_mb = 5\n"
    )
    url = f"s3://{bucket.name}"

    def s3cmd(*arguments: str | Path) -> str:
        binary = Path(sys.executable).parent / "s3cmd"
        return bucket.run(sys.executable, binary, "--config", config, "--no-progress", *arguments)

    s3cmd("sync", f"{tmp_path}/tree/", f"{url}/tree/")
    assert bucket.content == {f"tree/{name}": data for name, data in tree.items()}
    listed = s3cmd("ls", "--recursive", url)
    assert len(listed.splitlines()) == len(tree)
    (tmp_path / "back").mkdir()
    s3cmd("sync", f"{url}/tree/", f"{tmp_path}/back/")
    assert files_under(tmp_path / "back") == tree
    s3cmd("cp", f"{url}/tree/small.txt", f"{url}/copied")
    assert bucket.get("copied") == tree["small.txt"]
    s3cmd("del", "--recursive", f"{url}/tree/")
    assert bucket.keys == ["copied"]
