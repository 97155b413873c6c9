"""Parts of the demo: what it stores, what it cleans, what it measures."""

from pathlib import Path

import pytest

from exastore.deploy.demo.folder import MARKER, prepare
from exastore.deploy.demo.measure import Sample, measure_repair
from exastore.deploy.demo.s3 import run_parallel
from exastore.deploy.demo.steps import late_objects
from exastore.deploy.demo.workload import MIN_FILE_COUNT, MIN_LARGE_BYTES, collect
from exastore.deploy.errors import BadInput

MIB = 2**20


def sample(time_s: float, rebuilt: int, *, active: bool = True) -> Sample:
    return Sample(
        time_s=time_s,
        epoch=1,
        up_device_count=6,
        missing_slot_count=1,
        worst_missing_count=1,
        rebuilt_chunk_bytes=rebuilt,
        rebuilt_chunk_count=rebuilt // 10,
        read_bytes=4 * rebuilt,
        total_chunk_bytes=100,
        bytes_per_s=0.0,
        eta_s=None,
        repair_active=active,
    )


def test_the_workload_is_large_enough_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = collect(256 * MIB, tmp_path), collect(256 * MIB, tmp_path)
    assert first == second
    assert first.total_bytes >= 256 * MIB
    assert len(first.files) >= MIN_FILE_COUNT
    assert first.large.size_bytes >= MIN_LARGE_BYTES
    keys = [file.key for file in first.files]
    assert len(set(keys)) == len(keys)
    assert {key.partition("/")[0] for key in keys} == {"large", "stdlib", "wheels"}


def test_a_workload_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="less than"):
        collect(2**50, tmp_path)


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="is not empty and no demo made it"):
        prepare(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    with pytest.raises(BadInput, match="is not a folder"):
        prepare(tmp_path / "thesis.txt")


def test_an_earlier_demo_is_replaced_and_what_it_did_not_make_stays(tmp_path: Path) -> None:
    out = tmp_path / "out" / "demo"
    prepare(out)
    assert (out / MARKER).exists()
    (out / "sim").mkdir()
    (out / "sim" / "old.parquet").write_text("")
    (out / "report.html").write_text("old")
    (out / "mine.txt").write_text("mine")
    prepare(out)
    assert {path.name for path in out.iterdir()} == {MARKER, "mine.txt"}


def test_a_repair_is_measured_from_its_first_bytes_over_restarts_of_the_count() -> None:
    samples = [
        sample(0.0, 0, active=False),
        sample(1.0, 0),  # the nodes load
        sample(2.0, 100),
        sample(3.0, 300),
        sample(4.0, 300, active=False),  # waits: no time of the repair
        sample(5.0, 50),  # begins anew
        sample(6.0, 150, active=False),
    ]
    measured = measure_repair(samples, 6)
    assert measured.rebuilt_chunk_bytes == 300 + 150
    assert measured.rebuilt_chunk_count == 45
    assert measured.read_bytes == 4 * 450
    assert measured.elapsed_s == 4.0
    assert measured.device_bytes_per_s == 450 / 4.0 / 6
    assert measure_repair([], 6).device_bytes_per_s == 0.0


def test_the_first_error_of_parallel_work_ends_it() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        if number == 3:
            raise OSError("no")
        done.append(number)
        return number

    with pytest.raises(OSError, match="no"):
        list(run_parallel(work, list(range(10_000))))
    assert len(done) < 10_000
    assert sorted(result for _, result in run_parallel(lambda n: n * n, [1, 2, 3])) == [1, 4, 9]


def test_what_is_written_meanwhile_is_the_same_every_time() -> None:
    assert late_objects() == late_objects()
    assert len({key for key, _ in late_objects()}) == 24
