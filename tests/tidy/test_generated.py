"""Generated files are committed; generating them again changes nothing."""

import sys
from pathlib import Path

import grpc_tools
import pytest
from grpc_tools import protoc

from exastore.deploy.metrics_reference import metrics_reference

ROOT = Path(__file__).parents[2]
PROTO = Path("exastore/proto/v1")


def test_generating_the_stubs_again_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protos = sorted((ROOT / "proto" / PROTO).glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    # protoc finds its mypy plugins on the PATH, beside this interpreter.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'proto'}",
            f"-I{well_known}",
            f"--python_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            f"--mypy_out=quiet:{tmp_path}",
            f"--mypy_grpc_out=quiet:{tmp_path}",
            *(str(path) for path in protos),
        ]
    )
    assert code == 0
    fresh = {path.name: path.read_text() for path in (tmp_path / PROTO).iterdir()}
    committed = {
        path.name: path.read_text()
        for path in (ROOT / "proto" / PROTO).iterdir()
        if "_pb2" in path.name
    }
    assert committed == fresh, "run `make proto` and commit the result"


def test_the_page_of_metrics_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_reference(), "run `make docs`"
