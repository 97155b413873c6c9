"""What the overlap engine makes of a scenario: options, what it does not cover, and its tables."""

from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, Literal

import numpy as np

from exastore.erasure import codec
from exastore.metadata.core.redundancy_kernels import code_columns
from exastore.metadata.core.topology import DomainLevel, Int32Array, Uint8Array
from exastore.sim.build import device_lists
from exastore.sim.codes import code_shape
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.overlap import COUNTERS, ENTRY, RULES, Layout, Missing
from exastore.sim.run import Progress, place
from exastore.sim.scenario import Scenario
from exastore.sim.sections import NodeSection
from exastore.sim.state import Records
from exastore.sim.units import YEAR_S

Layouts = Literal["placed", "clustered", "unlimited"]
Clock = Literal["priority", "device", "group"]


@dataclass(frozen=True, slots=True)
class OverlapOptions:
    """Which of the models of `overlap` is run.

    Attributes:
        layout: "placed": the groups of the scenario, by the cluster's placement. "clustered":
            disjoint groups of n devices, one after the other; `placement.pg_count` is not used.
            "unlimited": no groups; each device is taken to have a stripe with any others that the
            rule allows, as simulators do that know no groups.
        clock: "priority": what is most endangered first, at the bandwidth of all devices.
            "device": a device is whole again a fixed time after its own failure. "group": each
            failure in a group starts its rebuilds anew.
    """

    layout: Layouts = "placed"
    clock: Clock = "priority"


#: Fields that this engine has no use for, and whose values therefore do not matter.
_WITHOUT_EFFECT = {
    "device.replacement_delay_s",
    "repair.out_after_s",
    "data.max_fill",
    "objects.sizes_bytes",
    "objects.shares",
}
#: Fields that it takes.
_COVERED = {
    "name",
    "description",
    "source",
    "code",
    "cluster",
    "run",
    "device.capacity_bytes",
    "device.afr_per_year",
    "device.life_shape",
    "device.afr_horizon_years",
    "placement.pg_count",
    "placement.domain",
    "placement.max_per_domain",
    "placement.policy",
    "placement.scatter_width",
    "placement.balanced",
    "data.user_bytes",
    "repair.detection_delay_s",
    "repair.write_bandwidth_bytes_per_s",
    "repair.read_bandwidth_bytes_per_s",
    "repair.node_bandwidth_bytes_per_s",
    "repair.rack_bandwidth_bytes_per_s",
    "repair.zone_bandwidth_bytes_per_s",
    "model.share",
    "model.afr_per_year",
    "model.life_shape",
    "model.afr_horizon_years",
    "model.age_min_years",
    "model.age_max_years",
    "model.hazard_from_years",
    "model.hazard_afr_per_year",
}


def left_out(scenario: Scenario) -> list[str]:
    """What the scenario has and durability without it is stated for, in words."""
    found: list[str] = []
    if scenario.node.outages_per_year > 0:
        rate = scenario.node.outages_per_year
        found.append(f"outages of nodes ({rate:.3g} per node and year), which lose nothing")
    found += [
        f"incident {incident.name}, which loses nothing"
        for incident in scenario.incident
        if incident.death_share == 0
    ]
    return found


def uncovered(scenario: Scenario, options: OverlapOptions) -> list[Problem]:
    """What of a scenario this engine cannot answer for."""
    found = _unknown_fields(scenario)
    full = "or use `exastore sim run`, which simulates it"
    for i, incident in enumerate(scenario.incident):
        if incident.death_share > 0:
            text = f"is {incident.death_share}: devices that die together are not covered; set 0"
            found.append(Problem(f"incident.{i}.death_share", f"{text} {full}"))
    if scenario.device.trace:
        text = f"is {scenario.device.trace!r}: failures that are played back are not covered"
        found.append(Problem("device.trace", f"{text}; give a law of life {full}"))
    shape = code_shape(scenario.code)
    if shape.sure < 1:
        text = f"is {scenario.code}, which survives no loss; use a code with parity"
        found.append(Problem("code", text))
    devices = scenario.cluster.device_count
    if options.layout == "clustered" and devices % shape.n:
        text = (
            f"makes {devices:,} devices, which are no whole groups of {shape.n} for"
            f" {scenario.code}; use a multiple, or the layout placed"
        )
        found.append(Problem("cluster.devices_per_node", text))
    if options.layout == "unlimited":
        found += _unlimited_problems(scenario, options)
    return found


def _unlimited_problems(scenario: Scenario, options: OverlapOptions) -> list[Problem]:
    found: list[Problem] = []
    if not code_shape(scenario.code).is_counted:
        text = f"is {scenario.code}: with unlimited chunks losses are only counted; use the layout"
        found.append(Problem("code", f"{text} placed, which asks the code about each loss"))
    if scenario.placement.max_per_domain > 1:
        text = f"is {scenario.placement.max_per_domain}; unlimited chunks need 1, or use the layout"
        found.append(Problem("placement.max_per_domain", f"{text} placed"))
    if options.clock != "priority":
        text = f"is {options.clock}: unlimited chunks have only the clock priority; use that one"
        found.append(Problem("clock", text))
    return found


def _unknown_fields(scenario: Scenario) -> list[Problem]:
    """Fields that say something else than their default and that are not listed above."""
    found: list[Problem] = []
    for item in fields(scenario):
        value: Any = getattr(scenario, item.name)
        if item.name in _COVERED or item.name in {"node", "incident"}:
            continue
        rows: list[tuple[str, Any]] = [(item.name, value)]
        if isinstance(value, tuple):
            rows = [(f"{item.name}.{i}", row) for i, row in enumerate(value)]
        for key, row in rows:
            for part in fields(row):
                name = f"{item.name}.{part.name}"
                if name in _COVERED | _WITHOUT_EFFECT or getattr(row, part.name) == part.default:
                    continue
                text = f"is {getattr(row, part.name)!r}, which `sim durability` does not cover"
                remedy = "leave it out or use `exastore sim run`"
                found.append(Problem(f"{key}.{part.name}", f"{text}; {remedy}"))
    return found


def without_incidents(scenario: Scenario) -> Scenario:
    """The scenario without what `left_out` names."""
    return replace(scenario, incident=(), node=NodeSection(outages_per_year=0.0))


@dataclass(frozen=True, slots=True)
class OverlapModel:
    """All that the trials need and none changes.

    Attributes:
        rules: A record of RULES.
        layout: What the devices hold.
        pg_devices: Shape (P, n). The groups; (0, n) with unlimited chunks.
    """

    rules: Records
    layout: Layout
    pg_devices: Int32Array


def build_model(
    scenario: Scenario,
    options: OverlapOptions,
    law: Uint8Array,
    *,
    seed: int,
    progress: Progress | None = None,
) -> OverlapModel:
    """Place the groups and work out the rates.

    Args:
        scenario: What to simulate.
        options: Which model.
        law: Shape (D,). The law of life of each device.
        seed: Of placement.
        progress: As that of `run`.

    Raises:
        ScenarioError: The engine does not cover the scenario, or its rule cannot be kept.
    """
    problems = uncovered(scenario, options)
    if problems:
        raise ScenarioError(scenario.name, problems)
    shape, devices = code_shape(scenario.code), scenario.cluster.device_count
    if options.layout == "clustered":
        table = np.arange(devices, dtype=np.int32).reshape(-1, shape.n)
    elif options.layout == "placed":
        table = place(scenario, seed=seed, progress=progress).pg_devices
    else:
        table = np.empty((0, shape.n), np.int32)
    rules = _rules(scenario, options, len(table))
    slots, slot_count = device_lists(table, devices, int(rules["shift"]))
    layout = Layout(slots, slot_count, law, code_columns(scenario.code))
    return OverlapModel(rules, layout, table)


def mean_reads(name: str) -> float:
    """Chunks that are read to rebuild one that is missing alone: the mean over all of them."""
    code = codec(name)
    return float(np.mean([sum(code.repair_plan([i]).reads.values()) for i in range(code.n)]))


def _rules(scenario: Scenario, options: OverlapOptions, group_count: int) -> Records:
    shape, repair, cluster = code_shape(scenario.code), scenario.repair, scenario.cluster
    domain = scenario.placement.rule.level
    groups = group_count or scenario.placement.pg_count
    run_bytes = scenario.data.user_bytes / (groups * shape.k)
    runs_per_device = groups * shape.n / cluster.device_count
    reads = mean_reads(scenario.code)
    write, read = repair.write_bandwidth_bytes_per_s, repair.read_bandwidth_bytes_per_s
    one = min(write, read) / run_bytes
    of_device = min(write, read / reads) / run_bytes
    links = [
        count * bytes_per_s / reads / run_bytes
        for count, bytes_per_s in (
            (cluster.node_count, repair.node_bandwidth_bytes_per_s),
            (cluster.rack_count, repair.rack_bandwidth_bytes_per_s),
            (cluster.zone_count, repair.zone_bandwidth_bytes_per_s),
        )
        if bytes_per_s > 0
    ]
    of_links = min(links, default=inf)
    all_runs = min(of_device * (cluster.device_count - 1), of_links)
    rules = np.zeros(1, RULES)[0]
    rules["n"], rules["sure"] = shape.n, shape.sure
    rules["shift"] = max(1, (shape.n - 1).bit_length())
    rules["device_count"] = cluster.device_count
    rules["domain_count"] = cluster.domain_count(domain)
    rules["domain_devices"] = cluster.device_count // cluster.domain_count(DomainLevel(domain))
    rules["runs_per_device"] = runs_per_device
    rules["horizon_s"] = scenario.run.years * YEAR_S
    rules["period_s"] = YEAR_S if scenario.run.years >= 1 else rules["horizon_s"]
    rules["detection_s"] = repair.detection_delay_s
    rules["restarts"] = options.clock == "group"
    rules["unlimited"] = options.layout == "unlimited"
    if options.layout == "unlimited":
        one = inf  # nothing but the bandwidth of all
    if options.clock != "priority":
        one = one if options.layout == "clustered" else min(one, all_runs / runs_per_device)
        of_device, of_links = inf, inf
    rules["runs_per_s"] = one
    rules["device_runs_per_s"] = of_device
    rules["link_runs_per_s"] = of_links
    return rules


def build_missing(rules: Records, room: int) -> Missing:
    """Room for what one worker's trials miss."""
    n = int(rules["n"])
    return Missing(
        now=np.zeros(1),
        counter=np.zeros(COUNTERS, np.int64),
        entries=np.zeros(room, ENTRY),
        lost=np.zeros(n, np.bool_),
        shares=np.zeros((n + 2, n + 2)),
    )
