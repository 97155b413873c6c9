"""`exastore sim durability` in one process."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from tests.unit.test_deploy_cli import run


def test_durability_is_counted_shown_and_written(tmp_path: Path) -> None:
    command = ("sim", "durability", "tiny", "--trials", "3000", "--seed", "4")
    code, out, _ = run(*command, "--json", "--workers", "2")
    assert code == 0
    figures = json.loads(out)
    assert (figures["trials"], figures["seed"], figures["layout"]) == (3000, 4, "placed")
    assert 0 <= figures["lower"] <= figures["loss_per_year"] <= figures["upper"] < 1e-3
    assert figures["device_failures"] > 30_000
    code, out, _ = run(*command, "--workers", "1", "--out", tmp_path)
    assert code == 0
    for text in ("P(any loss) per year", "outages of nodes", "years per second", str(tmp_path)):
        assert text in out
    table = pq.read_table(tmp_path / "durability.parquet")
    assert sum(table["device_failures"].to_pylist()) == figures["device_failures"]
    about = json.loads(table.schema.metadata[b"exastore"])
    assert (about["seed"], about["trials"]) == (4, 3000)
    assert about["options"] == {"layout": "placed", "clock": "priority"}


def test_another_layout_and_clock_can_be_chosen() -> None:
    options = ("--layout", "clustered", "--clock", "group", "--trials", "100", "--json")
    code, out, _ = run("sim", "durability", "tiny", *options)
    assert code == 0
    assert (json.loads(out)["layout"], json.loads(out)["clock"]) == ("clustered", "group")


def test_what_is_not_covered_is_told_with_the_remedy() -> None:
    code, out, err = run("sim", "durability", "tiny", "--layout", "unlimited", "--clock", "device")
    assert code == 2
    assert out == ""
    assert "clock: is device" in err
    assert "use that one" in err


def test_rare_losses_are_estimated_and_shown_on_the_page(tmp_path: Path) -> None:
    options = ("--trials", "200", "--rare", "4000", "--seed", "2")
    code, out, _ = run("sim", "durability", "tiny", *options, "--out", tmp_path)
    assert code == 0
    assert "importance sampling" in out
    made = (tmp_path / "report.html").read_text("utf-8")
    for text in ("importance sampling", "95 % interval", "birth-death chain", "outages of nodes"):
        assert text in made
    (tmp_path / "report.html").unlink()
    code, out, _ = run("sim", "report", tmp_path)
    assert code == 0
    assert (tmp_path / "report.html").read_text("utf-8") == made
    code, out, _ = run("sim", "durability", "tiny", *options, "--json")
    rare = json.loads(out)["rare"]
    assert rare["excursions"] == 4000
    assert 0 < rare["lower"] < rare["loss_per_year"] < rare["upper"] < 1e-6
