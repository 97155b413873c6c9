"""Every preset runs, says where its values are from, and stands in the table of the docs."""

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from exastore.sim import Scenario, load_scenario, preset_names, run
from exastore.sim.catalogue import preset_markdown
from exastore.sim.fleet import present_devices

DOCS = Path(__file__).parents[2] / "docs" / "simulator.md"
#: Devices of a preset that is made smaller.
FEW_DEVICES = 6_000
PUBLISHED = [name for name in preset_names() if load_scenario(name).source]


def shortened(scenario: Scenario) -> Scenario:
    """A few days of the same racks with fewer nodes and devices, groups and bytes."""
    cluster, before = scenario.cluster, present_devices(scenario, 0.0)
    cluster = replace(cluster, zones_per_region=1)
    cut = max(1, cluster.device_count // FEW_DEVICES)
    nodes = max(1, cluster.nodes_per_rack // cut)
    cut = max(1, cut * nodes // cluster.nodes_per_rack)
    devices = max(1, cluster.devices_per_node // cut)
    cluster = replace(cluster, nodes_per_rack=nodes, devices_per_node=devices)
    smaller = replace(scenario, cluster=cluster, run=replace(scenario.run, years=0.01, trials=1))
    share = present_devices(smaller, 0.0) / before
    return replace(
        smaller,
        placement=replace(
            scenario.placement, pg_count=max(50, int(scenario.placement.pg_count * share))
        ),
        data=replace(scenario.data, user_bytes=int(scenario.data.user_bytes * share)),
    )


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_runs(name: str) -> None:
    results = run(shortened(load_scenario(name)), seed=5)
    (row,) = results.trials.to_pylist()
    assert row["slots_mean"] > 1 and row["max_missing"] <= results.scenario.m
    assert row["violations"] == row["violations_at_start"] == 0
    assert row["pgs_lost"] == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_a_published_cluster_says_where_it_is_from(name: str) -> None:
    text = resources.files("exastore.sim").joinpath("presets", f"{name}.toml").read_text("utf-8")
    about = text.index("[run]")
    section = ""
    for line in text[:about].splitlines():
        header = re.match(r"\[+(\w+)\]+", line)
        section = header[1] if header else section
        is_value = re.match(r"\w+ = ", line)
        # Rows of a model have one comment for all, on their header.
        if section and is_value and not line.startswith(("name =", "share =")):
            if section in {"model", "generation"} and not line.startswith("racks"):
                continue
            assert re.search(r" # \S", line), line


def test_the_docs_list_every_preset_as_the_files_say() -> None:
    assert preset_markdown() in DOCS.read_text("utf-8"), "paste `exastore sim presets --markdown`"
