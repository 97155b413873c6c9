"""`exastore bench run erasure`: what it prints, writes and refuses."""

import ctypes.util
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from exastore.deploy.bench import erasure, peers
from exastore.deploy.cli.app import app
from exastore.deploy.errors import BadInput, EnvironmentUnfit
from exastore.erasure.field import matmul
from exastore.erasure.kernels import available_kernels

SMALL = ["--geometries", "4+2", "--chunk-kib", "4", "--rounds", "1"]


def test_the_table_and_the_json_lines_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    result = CliRunner().invoke(
        app, ["bench", "run", "erasure", "--vs", "", "--json", str(path), *SMALL]
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(line["operation"], line["code"]) for line in lines} == {
        ("encode", "rs-4-2"),
        ("decode", "rs-4-2"),
    }
    assert {line["contestant"] for line in lines} <= {"exastore", "roofline"}
    assert all(line["data_gb_per_s"] > 0 and line["processor"] for line in lines)
    for text in ("encode rs-4-2", "decode rs-4-2", "4.0 KiB", "one call costs"):
        assert text in result.stdout


def test_what_is_not_there_to_compare_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(_name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_nothing)
    monkeypatch.setattr(ctypes.util, "find_library", find_nothing)
    result = CliRunner().invoke(app, ["bench", "run", "erasure", "--operations", "encode", *SMALL])
    assert result.exit_code == 0, result.output
    for name in ("isal", "pyeclib", "zfec"):
        assert f"not compared with {name}" in result.output


@pytest.mark.parametrize(
    "options",
    [
        ["--vs", "leopard"],
        ["--kernel", "sse2"],
        ["--geometries", "10"],
        ["--geometries", "0+2"],
        ["--geometries", "250+6"],
        ["--chunk-kib", "x"],
        ["--chunk-kib", "0"],
        ["--operations", "rebuild"],
    ],
)
def test_wrong_options_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", "run", "erasure", *options])
    assert isinstance(result.exception, BadInput)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "results.jsonl"
    result = CliRunner().invoke(
        app, ["bench", "run", "erasure", "--vs", "", "--json", str(path), *SMALL]
    )
    assert isinstance(result.exception, EnvironmentUnfit)


@pytest.mark.parametrize("operation", erasure.OPERATIONS)
@pytest.mark.parametrize(("k", "m"), [(4, 2), (2, 3)])
def test_a_stripe_states_the_product_to_make(k: int, m: int, operation: str) -> None:
    stripe = erasure.make_stripe(erasure.Case(k, m, 100, operation))
    expected = np.stack([stripe.chunks[index] for index in stripe.lost])
    assert (matmul(stripe.matrix, np.stack(stripe.inputs)) == expected).all()
    assert stripe.is_encode == (operation == "encode")


@pytest.mark.parametrize("family", peers.FAMILIES)
@pytest.mark.parametrize("operation", erasure.OPERATIONS)
def test_peers_that_are_installed_are_measured(family: str, operation: str) -> None:
    kernel = next(iter(available_kernels()))
    found, missing = peers.find_peers([family], kernel)
    if not found:
        pytest.skip(missing[family])
    results = erasure.measure(erasure.Case(4, 2, 4096, operation), found, kernel, rounds=1)
    assert {peer.name for peer in found} <= {result.contestant for result in results}


def test_the_summary_counts_the_cells_below_one() -> None:
    base = erasure.Result("rs-4-2", "encode", 64, "x", "kernel", "avx2", 1.0, 1.0, 2.0, 1, 0)
    half = erasure.Result("rs-4-2", "encode", 64, "x", "kernel", "avx2", 1.0, 1.0, 0.5, 1, 0)
    assert erasure.summary([base, half]) == {("x", "kernel"): (1.0, 0.5, 1, 2)}
