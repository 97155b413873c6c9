"""restic: backup, check of all data, forget and prune, restore."""

import json
from pathlib import Path

import pytest
from tests.integration.clients.conftest import Bucket, files_under
from tests.support.programs import program

pytestmark = pytest.mark.integration


def test_restic_backs_up_checks_prunes_and_restores(
    bucket: Bucket, tree: dict[str, bytes], tmp_path: Path
) -> None:
    binary = program("restic")
    source = tmp_path / "tree"
    env = {
        "RESTIC_REPOSITORY": f"s3:{bucket.endpoint}/{bucket.name}/backup",
        "RESTIC_PASSWORD": "correct horse",
        "RESTIC_CACHE_DIR": str(tmp_path / "cache"),
    }

    def restic(*arguments: str | Path) -> str:
        return bucket.run(binary, *arguments, env=env)

    restic("init")
    restic("backup", source)
    (source / "large.bin").unlink()
    (source / "new").write_bytes(b"new")
    restic("backup", source)
    snapshots = json.loads(restic("snapshots", "--json"))
    assert len(snapshots) == 2
    restic("check", "--read-data")
    restic("restore", snapshots[0]["id"], "--target", tmp_path / "first")
    assert files_under(Path(f"{tmp_path}/first{source}")) == tree
    held_bytes = sum(len(data) for data in bucket.content.values())
    restic("forget", "--keep-last", "1", "--prune", "--max-unused", "0")
    left_bytes = sum(len(data) for data in bucket.content.values())
    assert left_bytes < held_bytes - len(tree["large.bin"]) // 2, "the large file is gone"
    restic("check", "--read-data")
    restic("restore", "latest", "--target", tmp_path / "last")
    assert files_under(Path(f"{tmp_path}/last{source}")) == files_under(source)
    assert bucket.keys[0] == "backup/config"
