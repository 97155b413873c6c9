"""Where compiled kernels are kept."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from exastore.erasure import jit


def test_the_cache_folder_is_keyed_by_the_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EXASTORE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit.cache_dir() == tmp_path / "exastore" / "numba" / jit.source_digest()
    assert jit.writable_cache_dir() == jit.cache_dir()
    assert list(jit.cache_dir().iterdir()) == []


def test_without_the_variable_the_cache_is_under_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EXASTORE_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jit.cache_dir().is_relative_to(tmp_path / ".cache")


def test_a_private_temporary_folder_replaces_one_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("EXASTORE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = jit.writable_cache_dir()
    assert folder.parent == tmp_path and folder.name.startswith("exastore-code-")
    assert folder.stat().st_mode & 0o077 == 0
    assert jit.writable_cache_dir() != folder


def test_compiled_functions_compute(tmp_path: Path) -> None:
    @jit.njit
    def double(value: int) -> int:
        return 2 * value

    assert double(21) == 42


def test_the_codes_are_right_without_a_compiler() -> None:
    tests = Path(__file__).parents[1]
    files = [tests / "property/test_erasure_all_codes.py", tests / "unit/test_erasure_codec.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        cwd=tests.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout and "failed" not in done.stdout
