"""`exastore bench run erasure`: what it measures, prints, writes and refuses."""

import ctypes
import ctypes.util
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from exastore.deploy.bench import erasure, first_use, markdown, peers, repair, report, timing
from exastore.deploy.bench.provenance import provenance
from exastore.deploy.bench.results import OURS, PRODUCTS, ROOFLINE, Record, Repair, Speed
from exastore.deploy.bench.roofline import products, rooflines
from exastore.deploy.bench.stripes import Case, make_stripe, size_label
from exastore.deploy.cli.app import app
from exastore.deploy.errors import BadInput, EnvironmentUnfit
from exastore.erasure.field import matmul
from exastore.erasure.kernels import available_kernels

SMALL = ["--codes", "4+2", "--sizes", "4KiB", "--rounds", "1"]
FASTEST = next(iter(available_kernels()))
HAS_VECTORS = FASTEST != "portable"


def invoke(*options: str) -> str:
    result = CliRunner().invoke(app, ["bench", "run", "erasure", *options])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def test_the_table_and_the_json_lines_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    output = invoke("--vs", "", "--tables", "speed,lrc", "--json", str(path), *SMALL)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ours = [line for line in lines if line["table"] == "speed" and line["peer"] == OURS]
    assert {line["geometry"] for line in ours} == {"encode-rs-4-2-4KiB", "decode-rs-4-2-4KiB"}
    assert {line["id"] for line in ours if line["kernel"] == FASTEST} == {
        f"encode-rs-4-2-4KiB-{FASTEST}",
        f"decode-rs-4-2-4KiB-{FASTEST}",
    }
    for line in ours:
        assert f"{line['data_bytes_per_s'] / 1e9:.2f}" in output
    for line in lines:
        assert line["processor"] and line["packages"] and line["measured_at_unix_s"] > 1e9
    assert {line["peer"] for line in lines if line["table"] == "lrc"} > {"rs-6-4", OURS}
    assert "what a call costs" in output and "ctypes" in output


def test_who_is_not_there_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_nothing)
    monkeypatch.setattr(ctypes.util, "find_library", find_nothing)
    output = invoke("--operations", "encode", "--tables", "speed", *SMALL)
    for name, install in [
        ("isal", "apt-get install libisal2"),
        ("pyeclib", "pip install pyeclib"),
        ("zfec", "pip install zfec"),
    ]:
        assert f"not compared with {name}" in output
        assert install in output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--vs", "leopard"], "leopard"),
        (["--kernel", "sse2"], "sse2"),
        (["--codes", "10"], "write k+m"),
        (["--codes", "0+2"], "write k+m"),
        (["--codes", "250+6"], "255"),
        (["--sizes", "x"], "64KiB"),
        (["--sizes", "0"], "64KiB"),
        (["--operations", "rebuild"], "rebuild"),
        (["--tables", "chairs"], "first-use"),
        (["--isal-functions", "mmx"], "avx512_gfni"),
        (["--isal-library", "/nonexistent/libisal.so"], "/nonexistent"),
        (["--core", "4096", *SMALL], "--core 4096"),
    ],
)
def test_wrong_options_are_refused(options: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["bench", "run", "erasure", *options])
    assert isinstance(result.exception, BadInput)
    assert told in result.exception.message


def test_functions_that_this_processor_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "host_features", frozenset[str])
    with pytest.raises(BadInput, match="has no avx2"):
        peers.find_peers(["isal"], FASTEST, isal_functions="avx2_gfni")


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "results.jsonl"
    result = CliRunner().invoke(app, ["bench", "run", "erasure", "--json", str(path)])
    assert isinstance(result.exception, EnvironmentUnfit)


@pytest.mark.parametrize(
    ("code", "operation", "lost"),
    [
        ("rs-4-2", "encode", (4, 5)),
        ("rs-4-2", "decode", (0, 1)),
        ("rs-10-6", "decode", (0, 1, 2, 3)),
        ("rs-2-3", "decode", (0, 1)),
        ("lrc-6-2-2", "encode", (6, 7, 8, 9)),
    ],
)
def test_a_stripe_states_the_product_to_make(
    code: str, operation: str, lost: tuple[int, ...]
) -> None:
    stripe = make_stripe(Case(code, 100, operation))
    expected = np.stack([stripe.chunks[index] for index in stripe.lost])
    assert stripe.lost == lost
    assert (matmul(stripe.matrix, np.stack(stripe.inputs)) == expected).all()
    assert stripe.is_encode == (operation == "encode")
    # No two chunks begin at the same place of their pages.
    starts = [chunk.ctypes.data % 4096 for chunk in (*stripe.inputs, *stripe.outputs)]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize("family", peers.FAMILIES)
@pytest.mark.parametrize("operation", ["encode", "decode"])
def test_peers_that_are_installed_are_measured_and_right(family: str, operation: str) -> None:
    found, missing = peers.find_peers([family], FASTEST)
    if not found:
        pytest.skip(missing[family])
    records = erasure.measure(Case("rs-10-4", 4096, operation), FASTEST, found, rounds=2)
    speeds = report.speeds(records, "speed")
    assert {peer.name for peer in found} <= {speed.peer for speed in speeds}
    assert all(speed.call_s > 0 and speed.rounds > 0 for speed in speeds)


@pytest.mark.parametrize("family", peers.FAMILIES)
@pytest.mark.parametrize("operation", ["encode", "decode"])
def test_a_wrong_result_of_a_peer_is_noticed(family: str, operation: str) -> None:
    found, missing = peers.find_peers([family], FASTEST)
    if not found:
        pytest.skip(missing[family])
    stripe = make_stripe(Case("rs-4-2", 4096, operation))
    works = found[0].works(stripe)
    assert all(work.is_right() for work in works.values())
    # What is right changes after the peer has seen its inputs.
    stripe.chunks[stripe.lost[0]][7] ^= 1
    noticed = [not work.is_right() for work in works.values()]
    # pyeclib keeps a copy of the data, and parity is its own: it is checked by its own decoding.
    assert all(noticed) or family == "pyeclib" or (family, operation) == ("zfec", "encode")


def test_who_is_wrong_is_not_timed() -> None:
    class Broken:
        name = "broken"
        details = "always wrong"

        def works(self, stripe: peers.Stripe) -> dict[str, peers.Work]:
            return {peers.CALL: peers.written(lambda _count: None, stripe)}

    with pytest.raises(peers.WrongResult, match="broken"):
        erasure.measure(Case("rs-4-2", 4096, "encode"), FASTEST, [Broken()], rounds=1)


def test_an_interrupted_run_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_arguments: object) -> list[Record]:
        raise KeyboardInterrupt

    monkeypatch.setattr(erasure, "measure_local", interrupt)
    path = tmp_path / "results.jsonl"
    options = ["--vs", "", "--tables", "speed,lrc", "--kernel", FASTEST, "--json", str(path)]
    result = CliRunner().invoke(app, ["bench", "run", "erasure", *options, *SMALL])
    assert result.exit_code == 130
    assert "interrupted" in result.output and "encode-rs-4-2-4KiB" in path.read_text()


@pytest.mark.skipif(not HAS_VECTORS, reason="without vector kernels there are no limits to measure")
def test_the_limits_are_measured_beside_us() -> None:
    records = erasure.measure(Case("rs-4-2", 4096, "encode"), FASTEST, [], rounds=2)
    assert ROOFLINE in {record.peer for record in records}
    assert (PRODUCTS in {record.peer for record in records}) == FASTEST.startswith("gfni")


@pytest.mark.skipif(not HAS_VECTORS, reason="without vector kernels there are no limits to measure")
def test_the_roofline_reads_every_chunk_and_writes_every_output() -> None:
    stripe = make_stripe(Case("rs-4-2", 512, "encode"))
    for repeat in rooflines(stripe).values():
        for output in stripe.outputs:
            output[:] = 0
        repeat(1)
        made = stripe.outputs[0] ^ stripe.outputs[1]
        assert (made == np.bitwise_xor.reduce(np.stack(stripe.inputs))).all()
    assert rooflines(make_stripe(Case("rs-4-2", 500, "encode"))) == {}
    assert products(stripe, "avx2") is None


@pytest.mark.skipif(not HAS_VECTORS, reason="there is no machine code to call")
def test_machine_code_is_called_as_often_as_asked_and_with_its_arguments() -> None:
    calls: list[tuple[int, int]] = []

    def note(first: int, second: int) -> None:
        calls.append((first, second))

    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(note)
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    timing.native_repeat(address, (7, -9), function)(3)
    assert calls == [(7, -9)] * 3


def test_the_slow_take_part_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHARE_S", 1e-9)
    calls: list[int] = []
    times = timing.take_turns({"slow": calls.append}, rounds=9)
    assert sorted(times["slow"]) == [0, 3, 6]


def test_a_ratio_is_the_median_over_the_rounds_in_which_both_took_part() -> None:
    ratio = timing.ratio_of({0: 2.0, 2: 9.0, 4: 8.0}, {0: 1.0, 1: 1.0, 2: 3.0, 4: 2.0})
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.5, 3.5)


def test_the_core_is_given_back() -> None:
    before = os.sched_getaffinity(0)
    with timing.pinned() as core:
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


def test_first_use_is_longer_with_an_empty_cache() -> None:
    firsts = first_use.measure_first_use(["rs-4-2"], FASTEST, rounds=1)
    assert [first.cache for first in firsts] == ["warm", "empty"]
    for first in firsts:
        assert 0 < first.import_to_stripe_s < first.first_stripe_s


def test_the_model_of_repair_adds_reading_and_computing() -> None:
    for found in repair.measure_repair("clay-4-2-5", 4096, FASTEST, rounds=1):
        assert (found.read_bytes, found.peer_read_bytes) == (5 * 4096 // 2, 4 * 4096)
        assert found.total_s == pytest.approx(found.read_bytes / 200e6 + found.compute_s)
        assert found.ratio == pytest.approx(found.peer_total_s / found.total_s)


def speed(ratio: float, *, peer: str = "isal-9.9.9", geometry: int = 4096) -> Speed:
    return Speed(
        "speed",
        "rs-4-2",
        "encode",
        geometry,
        "gfni512",
        peer,
        "kernel",
        call_s=1e-6,
        data_bytes_per_s=1e9,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
        rounds=3,
        checksum_crc32=0,
    )


def test_the_summary_names_the_cells_below_the_target() -> None:
    cells: Sequence[Record] = [speed(2.0), speed(0.5, geometry=65536), speed(0.9, peer=ROOFLINE)]
    isal, roofline = report.summarise(cells)
    assert (isal.mean, isal.least, isal.least_geometry) == (1.0, 0.5, "encode-rs-4-2-64KiB")
    assert not isal.is_met and len(isal.below) == 1 and "encode-rs-4-2-64KiB 0.500" in isal.below[0]
    assert roofline.is_met
    text = "\n".join(report.summary_lines(cells))
    assert "1.00x geometric mean, 0.500x least (encode-rs-4-2-64KiB) of 2" in text
    assert "MISSED" in text and "below: encode-rs-4-2-64KiB" in text


def test_every_target_is_said_to_be_met_or_missed() -> None:
    slow = Repair(
        code="clay-4-2-5",
        peer="rs-4-2",
        chunk_bytes=4096,
        lost_index=0,
        kernel="gfni512",
        read_bytes=1,
        peer_read_bytes=2,
        compute_s=1.0,
        peer_compute_s=0.5,
        read_rate_bytes_per_s=200e6,
        total_s=1.0,
        peer_total_s=0.5,
        ratio=0.5,
        break_even_bytes_per_s=2.0,
    )
    text = "\n".join(report.all_tables([slow]))
    assert "Clay repair" in text and "MISSED" in text and "repair-clay-4-2-5-4KiB-lost0" in text


def test_a_page_holds_the_cells_and_what_was_judged() -> None:
    cells = [speed(1.0, peer=OURS), speed(2.0), speed(0.9, peer=ROOFLINE)]
    text = markdown.page(cells, provenance(1, 0.0), "exastore bench run erasure")
    assert "| rs-4-2 | 1.0; 2.00x; 90 % |" in text
    assert "    exastore bench run erasure\n" in text and "1970-01-01" in text
    assert "2.00x geometric mean" in text


@pytest.mark.parametrize(
    ("size_bytes", "label"), [(100, "100B"), (65536, "64KiB"), (1 << 24, "16MiB")]
)
def test_sizes_are_named_as_in_ids(size_bytes: int, label: str) -> None:
    assert size_label(size_bytes) == label


def test_ctypes_itself_costs_some_time() -> None:
    assert 1e-8 < timing.ctypes_call_s(rounds=3) < 1e-3
