"""The commands of pages, word for word, as who reads them runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.conftest import ISOLATED, LiveCluster, NewCluster

pytestmark = pytest.mark.integration

DOCS = Path(__file__).parents[2] / "docs"
PROGRAMS = ("exastore", "aws", "curl", "echo")
#: Blocks of indented lines.
BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def scripts_of(page: str) -> list[str]:
    """The blocks of a page that are commands."""
    blocks = BLOCK.findall((DOCS / page).read_text())
    return [block for block in blocks if block.split()[0] in PROGRAMS]


def documents_of(page: str) -> list[str]:
    """The blocks of a page that are policies."""
    blocks = BLOCK.findall((DOCS / page).read_text())
    return [block for block in blocks if block.lstrip().startswith('{"Version"')]


def run_page(page: str, live: LiveCluster, folder: Path) -> str:
    """Run all commands of a page in a folder; returns what they print."""
    env = {
        **os.environ,
        **ISOLATED,
        **live.aws_env(),
        "EXASTORE_CLUSTER": str(live.directory),
        "NO_PROXY": "127.0.0.1",
        "S3": live.info["s3"]["endpoint"],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    scripts = scripts_of(page)
    assert scripts, f"{page} has no commands"
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", "\n".join(scripts)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_of_the_pages_on_access_and_encryption_work(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    live = new_cluster()
    (reader,) = documents_of("access.md")
    (tmp_path / "reader.json").write_text(reader)
    told = run_page("access.md", live, tmp_path)
    assert "meow" in told, "anybody reads what the policy opens"
    assert '"tenant": "exastore"' in told, "usage is told of who pays"
    assert "wraps from now on" in run_page("encryption.md", live, tmp_path)
