"""Generations of racks: which are there when, and what a scenario promises of them.

Generation 0 are the racks of `cluster`, then come those of `[[generation]]` in their order. The
tree of failure domains has the racks of all of them from the start, in each zone one generation
after the other, so that nothing is ever renumbered; racks that have not joined, or have gone, are
absent: no weight, no failures, no data.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exastore.metadata.core.columns import BoolArray
from exastore.metadata.core.topology import DomainLevel, Float64Array, Int32Array

if TYPE_CHECKING:
    from exastore.sim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Generation:
    """One of the fleet; see `sections.GenerationSection`."""

    name: str
    racks_per_zone: int
    capacity_bytes: int
    joins_years: float
    leaves_years: float
    model: int

    def serves(self, years: float) -> bool:
        """Whether its racks take data at this time."""
        return self.joins_years <= years and not 0.0 < self.leaves_years <= years


def generations_of(scenario: "Scenario") -> tuple[Generation, ...]:
    """All generations, that of `cluster` first."""
    cluster, capacity = scenario.cluster, scenario.device.capacity_bytes
    first = Generation("cluster", cluster.racks_per_zone, capacity, 0.0, cluster.leaves_years, -1)
    later = (
        Generation(
            row.name,
            row.racks_per_zone,
            row.capacity_bytes or capacity,
            row.joins_years,
            row.leaves_years,
            row.model,
        )
        for row in scenario.generation
    )
    return (first, *later)


def generation_of_node(scenario: "Scenario") -> Int32Array:
    """Shape (N,): the generation of each node of the tree."""
    counts = [generation.racks_per_zone for generation in generations_of(scenario)]
    of_rack = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.repeat(np.tile(of_rack, scenario.tree.zone_count), scenario.tree.nodes_per_rack)


def weights_at(scenario: "Scenario", years: float) -> Float64Array:
    """Shape (D,): capacity in TiB of the devices that take data at this time, else 0."""
    serves = [generation.serves(years) for generation in generations_of(scenario)]
    return weights_of(scenario, np.array(serves))


def weights_of(scenario: "Scenario", serves: BoolArray) -> Float64Array:
    """As `weights_at`, for the generations that serve; `serves` has shape (G,)."""
    capacity = np.array([its.capacity_bytes for its in generations_of(scenario)])
    per_node = np.where(serves, capacity / 2**40, 0.0)[generation_of_node(scenario)]
    if scenario.placement.regions:
        per_region = len(per_node) // scenario.cluster.region_count
        region = np.arange(len(per_node)) // per_region
        per_node = np.where(np.isin(region, scenario.placement.regions), per_node, 0.0)
    return np.repeat(per_node, scenario.cluster.devices_per_node)


def _regions(scenario: "Scenario") -> int:
    """Regions that may hold data."""
    return len(set(scenario.placement.regions)) or scenario.cluster.region_count


def _zones(scenario: "Scenario") -> int:
    """Zones that may hold data."""
    return _regions(scenario) * scenario.cluster.zones_per_region


def _racks_at(scenario: "Scenario", years: float) -> int:
    """Racks of each zone that take data at this time."""
    return sum(
        generation.racks_per_zone
        for generation in generations_of(scenario)
        if generation.serves(years)
    )


def _devices_per_rack(scenario: "Scenario") -> int:
    return scenario.cluster.nodes_per_rack * scenario.cluster.devices_per_node


def present_devices(scenario: "Scenario", years: float) -> int:
    """Devices that take data at this time."""
    racks = _racks_at(scenario, years) * _zones(scenario)
    return racks * _devices_per_rack(scenario)


def capacity_at(scenario: "Scenario", years: float) -> int:
    """Bytes of all devices that take data at this time."""
    per_zone = sum(
        generation.racks_per_zone * generation.capacity_bytes
        for generation in generations_of(scenario)
        if generation.serves(years)
    )
    return per_zone * _zones(scenario) * _devices_per_rack(scenario)


def domains_at(scenario: "Scenario", years: float, level: DomainLevel | None = None) -> int:
    """Domains that take data at this time, of a level, or of that of the placement's rule."""
    cluster = scenario.cluster
    racks = _racks_at(scenario, years)
    level = scenario.placement.rule.level if level is None else level
    if level >= DomainLevel.ZONE:
        count = _zones(scenario) if level == DomainLevel.ZONE else _regions(scenario)
        return count if racks else 0
    per_rack = {
        DomainLevel.DEVICE: _devices_per_rack(scenario),
        DomainLevel.NODE: cluster.nodes_per_rack,
        DomainLevel.RACK: 1,
    }[level]
    return racks * _zones(scenario) * per_rack


def user_bytes_at(scenario: "Scenario", years: float) -> float:
    """User data at this time, which grows month by month."""
    months = np.floor(years * 12 + 1e-9)
    return float(scenario.data.user_bytes * (1 + scenario.data.growth_per_year) ** (months / 12))


def change_problems(scenario: "Scenario") -> list[tuple[str, str]]:
    """What is wrong with what joins, leaves and grows: (key, what)."""
    found: list[tuple[str, str]] = []
    leaving = [("cluster.leaves_years", scenario.cluster.leaves_years)]
    for i, row in enumerate(scenario.generation):
        key = f"generation.{i}"
        leaving.append((f"{key}.leaves_years", row.leaves_years))
        if row.model >= len(scenario.models):
            text = f"is {row.model}, but there are {len(scenario.models)} models, from 0"
            found.append((f"{key}.model", f"{text}; give one of them, or -1 for the mix"))
        if 0.0 < row.leaves_years <= row.joins_years:
            text = f"is {row.leaves_years}, not after joins_years = {row.joins_years}"
            found.append((f"{key}.leaves_years", f"{text}; give a later time, or 0 for never"))
        if row.joins_years > 0 and scenario.device.trace:
            text = "is above 0, but device.trace plays back failures of devices of the start"
            found.append((f"{key}.joins_years", f"{text}; leave one of both"))
    for key, years in leaving:
        if years > 0 and scenario.balance.every_s == 0:
            text = (
                f"is {years}, but balance.every_s = 0 moves nothing, so that these racks would"
                " never be empty; give balance.every_s, such as 86400"
            )
            found.append((key, text))
    return found or _shortages(scenario, leaving)


def _shortages(scenario: "Scenario", leaving: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """The first time at which data or stripes do not fit; the start is checked elsewhere."""
    times = {years: key for key, years in leaving if years > 0}
    if scenario.data.growth_per_year > 0:
        months = int(scenario.run.years * 12 + 1e-9)
        times |= {month / 12: "data.growth_per_year" for month in range(1, months + 1)}
    placement = scenario.placement
    for years, key in sorted(times.items()):
        if years > scenario.run.years:
            break
        places = min(
            domains_at(scenario, years) * placement.max_per_domain,
            present_devices(scenario, years),
        )
        if places < scenario.n:
            text = (
                f"leaves, after {years:.4g} years, room for {places} chunks of a stripe, but"
                f" {scenario.code} has {scenario.n}; let more {placement.domain}s join before"
            )
            return [(key, text)]
        taken = user_bytes_at(scenario, years) * scenario.n / scenario.k
        capacity = capacity_at(scenario, years)
        if taken > scenario.data.max_fill * capacity:
            text = (
                f"fills {taken / capacity:.1%} of the devices after {years:.4g} years, more than"
                f" data.max_fill = {scenario.data.max_fill:.0%}; let more or larger devices join"
                " before, or less data grow"
            )
            return [(key, text)]
    return []
