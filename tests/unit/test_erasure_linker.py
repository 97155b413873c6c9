"""Our linker of compiled code, and the cache of code."""

import ctypes
import os
import platform
from pathlib import Path

import pytest

from exastore.erasure.cache import CodeCache
from exastore.erasure.kernels import linker, native
from exastore.erasure.kernels.linker import LinkedCode, Unlinkable

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="code for x86-64")

#: A function that calls another one and reads a constant: references of both kinds.
IR = """
@table = private constant [4 x i64] [i64 2, i64 3, i64 5, i64 7]
define i64 @prime(i64 %i) noinline {
  %place = getelementptr [4 x i64], ptr @table, i64 0, i64 %i
  %value = load i64, ptr %place
  ret i64 %value
}
define i64 @two_primes(i64 %i) {
  %j = sub i64 3, %i
  %a = call i64 @prime(i64 %i)
  %b = call i64 @prime(i64 %j)
  %c = mul i64 %a, %b
  ret i64 %c
}
"""
OUTSIDE = """
declare i64 @labs(i64)
define i64 @two_primes(i64 %i) {
  %a = call i64 @labs(i64 %i)
  %b = add i64 %a, 14
  ret i64 %b
}
"""


def _call(code: native.Code, argument: int) -> int:
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.address("two_primes"))
    return int(function(argument))


def test_functions_and_constants_are_linked() -> None:
    code = LinkedCode(native.compile_object(IR, "x86-64", ""))
    assert (_call(code, 0), _call(code, 1)) == (14, 15)
    with pytest.raises(LookupError):
        code.address("three_primes")


def test_what_our_linker_does_not_take_llvm_takes() -> None:
    compiled = native.compile_object(OUTSIDE, "x86-64", "")
    with pytest.raises(Unlinkable, match="labs"):
        LinkedCode(compiled)
    code = native.link(compiled)
    assert isinstance(code, native.LlvmLinkedCode)
    assert _call(code, 0) == 14
    with pytest.raises(LookupError):
        code.address("three_primes")


def test_code_is_not_writable() -> None:
    code = LinkedCode(native.compile_object(IR, "x86-64", ""))
    place = code.address("prime")
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= place < last:
            assert line.split()[1].startswith("r-x")
            return
    raise AssertionError("the code is mapped nowhere")


@pytest.mark.parametrize("keep", [0, 5, 40, 63, 64, 100, 300])
def test_a_cut_object_is_refused(keep: int) -> None:
    with pytest.raises(Unlinkable):
        LinkedCode(native.compile_object(IR, "x86-64", "")[:keep])


def test_memory_that_cannot_be_made_executable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linker, "_READ_EXECUTE", -1)
    with pytest.raises(Unlinkable, match="mprotect"):
        LinkedCode(native.compile_object(IR, "x86-64", ""))


def test_features_come_from_llvm_where_linux_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = native.host_features()
    monkeypatch.setattr(native, "_CPU_FILE", str(tmp_path / "missing"))
    asked = native.host_features()
    wanted = {"avx2", "gfni", "avx512f", "avx512bw"}
    assert told & wanted == asked & wanted


def test_the_cache_gives_back_what_was_stored(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    assert cache.load(b"key") is None
    cache.store(b"key", b"code")
    cache.store(b"other", b"")
    assert (cache.load(b"key"), cache.load(b"other"), cache.load(b"k")) == (b"code", b"", None)


def test_a_file_under_another_key_is_not_taken(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    cache.store(b"key", b"code")
    os.replace(cache.path(b"key"), cache.path(b"other"))
    assert cache.load(b"other") is None


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_file_with_one_wrong_bit_is_not_taken(place: int, tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    cache.store(b"key", b"code")
    content = bytearray(cache.path(b"key").read_bytes())
    content[place] ^= 1
    cache.path(b"key").write_bytes(content)
    assert cache.load(b"key") is None
    cache.store(b"key", b"code")
    assert cache.load(b"key") == b"code"


def test_a_file_that_others_can_write_is_not_taken(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path)
    cache.store(b"key", b"code")
    assert cache.path(b"key").stat().st_mode & 0o077 == 0
    cache.path(b"key").chmod(0o622)
    assert cache.load(b"key") is None


def test_the_folder_is_made_for_us_alone_when_something_is_kept(tmp_path: Path) -> None:
    cache = CodeCache(tmp_path / "new" / "kernels")
    assert cache.load(b"key") is None and not (tmp_path / "new").exists()
    cache.store(b"key", b"code")
    assert cache.load(b"key") == b"code" and cache.folder.stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = CodeCache(tmp_path / "file" / "kernels")
    cache.store(b"key", b"code")
    assert cache.load(b"key") is None
    (tmp_path / "file").unlink()
    in_the_way = CodeCache(tmp_path)
    in_the_way.path(b"key").mkdir()
    in_the_way.store(b"key", b"code")
    assert in_the_way.load(b"key") is None
    assert [path.name for path in tmp_path.iterdir()] == [in_the_way.path(b"key").name]
