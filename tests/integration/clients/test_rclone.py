"""rclone: copy, sync, check, with times kept in user metadata."""

import os
from pathlib import Path

import pytest
from tests.integration.clients.conftest import Bucket, files_under
from tests.support.programs import program

pytestmark = pytest.mark.integration


def test_rclone_copies_syncs_and_checks(
    bucket: Bucket, tree: dict[str, bytes], tmp_path: Path
) -> None:
    binary = program("rclone")
    env = {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_EXA_TYPE": "s3",
        "RCLONE_CONFIG_EXA_PROVIDER": "Other",
        "RCLONE_CONFIG_EXA_ENV_AUTH": "true",
        "RCLONE_CONFIG_EXA_ENDPOINT": bucket.endpoint,
        "RCLONE_S3_CHUNK_SIZE": "5M",
        "RCLONE_S3_UPLOAD_CUTOFF": "8M",
    }
    remote = f"exa:{bucket.name}/tree"

    def rclone(*arguments: str | Path) -> str:
        return bucket.run(binary, *arguments, env=env)

    source = tmp_path / "tree"
    os.utime(source / "small.txt", (1_600_000_000, 1_600_000_000))
    rclone("copy", source, remote)
    assert bucket.content == {f"tree/{name}": data for name, data in tree.items()}
    rclone("check", source, remote)
    rclone("check", "--download", source, remote)
    listed = rclone("lsl", remote)
    assert "2020-09-13" in next(line for line in listed.splitlines() if "small.txt" in line)
    (source / "empty").unlink()
    (source / "new").write_bytes(b"new")
    rclone("sync", source, remote)
    tree.pop("empty")
    tree["new"] = b"new"
    assert bucket.content == {f"tree/{name}": data for name, data in tree.items()}
    rclone("moveto", f"{remote}/large.bin", f"{remote}/moved.bin")
    rclone("sync", remote, tmp_path / "back")
    tree["moved.bin"] = tree.pop("large.bin")
    assert files_under(tmp_path / "back") == tree
    rclone("purge", remote)
    assert bucket.keys == []
