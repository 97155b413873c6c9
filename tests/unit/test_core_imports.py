"""The core stays pure: importing it loads no gRPC and no store."""

import subprocess
import sys
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "metadata/exastore/metadata/core"
MODULES = sorted(path.stem for path in CORE.glob("*.py") if path.stem != "__init__")
FORBIDDEN = ("grpc", "google.protobuf", "exastore.proto", "exastore.metadata.kv")
PROGRAM = """
import sys
for name in sys.argv[2:]:
    __import__("exastore.metadata.core." + name)
print([name for name in sys.argv[1].split(",") if name in sys.modules])
"""


def test_a_fresh_interpreter_loads_the_core_alone() -> None:
    command = [sys.executable, "-c", PROGRAM, ",".join(FORBIDDEN), *MODULES]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_core_modules_are_calm(name: str) -> None:
    assert len((CORE / f"{name}.py").read_text().splitlines()) < 500
