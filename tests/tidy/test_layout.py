"""The layout of the repository, as style rules that a test can hold."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("proto", "erasure", "metadata", "storage", "gateway", "sim", "deploy")

#: Modules that may be longer than 800 lines, each with its reason.
LONG_MODULES: dict[str, str] = {}


#: Modules that may use other words for a chunk, each with its reason.
FOREIGN_WORDS = {
    "deploy/exastore/deploy/bench/peers.py": "calls other coders by their own names",
}


@cache
def tracked_files() -> tuple[Path, ...]:
    """What git tracks or would track, without what it ignores."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return tuple(ROOT / name for name in listing.splitlines() if (ROOT / name).is_file())


def sources() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py" and "_pb2" not in path.name]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_holds_exactly_its_own_package(room: str) -> None:
    # A stray exastore/__init__.py, or another room's folder, hides every other room.
    entries = {path.name for path in (ROOT / room / "exastore").iterdir()} - {"__pycache__"}
    assert entries == {room}
    assert (ROOT / room / "exastore" / room / "py.typed").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_explains_itself(room: str) -> None:
    assert len((ROOT / room / "README.md").read_text().splitlines()) >= 5


def test_modules_are_short_enough_to_read() -> None:
    long = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources()
        if len(path.read_text().splitlines()) > 800
    }
    assert set(long) == set(LONG_MODULES), f"split these, or give a reason in LONG_MODULES: {long}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.read_text().strip() and not path.read_text().lstrip().startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_the_fixed_words_are_used() -> None:
    # One word per thing: the stored unit is a chunk.
    banned = re.compile(r"\b(shards?|fragments?)\b", re.IGNORECASE)
    uses = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        if path != Path(__file__) and str(path.relative_to(ROOT)) not in FOREIGN_WORDS
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if banned.search(line)
    ]
    assert uses == []


def test_locks_carry_hashes_and_no_address() -> None:
    for name in ("requirements-dev.lock", "requirements-bootstrap.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "--hash=sha256:" in text
    bootstrap = re.findall(r"^uv==(\S+)", (ROOT / "requirements-bootstrap.lock").read_text(), re.M)
    locked = re.findall(r"^uv==(\S+)", (ROOT / "requirements-dev.lock").read_text(), re.M)
    assert bootstrap == locked


def test_no_path_of_a_developers_machine_is_committed() -> None:
    pattern = re.compile(rb"(^|[^\w./])/(home|root|work|Users)/\w")
    hits = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path != Path(__file__) and pattern.search(path.read_bytes())
    ]
    assert hits == []


def test_no_file_is_large() -> None:
    large = {
        str(path.relative_to(ROOT)): path.stat().st_size
        for path in tracked_files()
        if path.stat().st_size > 500_000
    }
    assert large == {}


@pytest.mark.parametrize(
    "module", ["exastore.erasure", "exastore.metadata.core.topology", "exastore.sim"]
)
def test_the_core_loads_no_network(module: str) -> None:
    # A fresh interpreter: import-linter does not see what a parent package imports.
    code = f"import sys, {module}; print('grpc' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert loaded.strip() == "False"
