"""Scenarios: what is simulated, read from TOML, with every error at once and its place.

A scenario is a value: frozen dataclasses whose field names end in their unit. `load_scenario`
reads a file or a preset; `parse_scenario` reads text; `scenario_toml` writes one back.
"""

import tomllib
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from importlib import resources
from math import ceil
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from exastore.metadata.core.topology import DomainLevel, Topology, frozen
from exastore.sim.codes import code_shape
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.fleet import (
    capacity_at,
    change_problems,
    domains_at,
    present_devices,
    weights_at,
)
from exastore.sim.foreground import foreground_problems
from exastore.sim.objects import object_problems
from exastore.sim.sections import (
    BalanceSection,
    ClusterSection,
    DataSection,
    DecisionsSection,
    DeviceSection,
    ForegroundSection,
    GenerationSection,
    IncidentSection,
    LatentSection,
    ModelSection,
    Name,
    NodeSection,
    ObjectsSection,
    PlacementSection,
    RepairSection,
    RunSection,
    SparesSection,
    Text,
)
from exastore.sim.toml_lines import line_of, syntax_error_line
from exastore.sim.wording import problems_of

#: What happens by the calendar happens between events, and stops the engine for it.
_SHORTEST_PERIOD_S = 60.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a run needs but its seed; see the sections.

    Attributes:
        source: Publication that describes the cluster; "" if none does.
        code: Name of the code, such as "rs-10-4".
        model: Models of devices; none: the law of life of `device` for all.
        incident: What takes nodes away, beside the outages of `node`.
        generation: Racks of another make than `cluster`, which may join and leave.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Name
    code: Text
    cluster: ClusterSection
    device: DeviceSection
    placement: PlacementSection
    data: DataSection
    description: Text = ""
    source: Text = ""
    node: NodeSection = field(default_factory=NodeSection)
    repair: RepairSection = field(default_factory=RepairSection)
    balance: BalanceSection = field(default_factory=BalanceSection)
    objects: ObjectsSection = field(default_factory=ObjectsSection)
    spares: SparesSection = field(default_factory=SparesSection)
    latent: LatentSection = field(default_factory=LatentSection)
    foreground: ForegroundSection = field(default_factory=ForegroundSection)
    decisions: DecisionsSection = field(default_factory=DecisionsSection)
    run: RunSection = field(default_factory=RunSection)
    generation: tuple[GenerationSection, ...] = ()
    model: tuple[ModelSection, ...] = ()
    incident: tuple[IncidentSection, ...] = ()

    @property
    def tree(self) -> ClusterSection:
        """The cluster with the racks of all generations, also of those that join later."""
        racks = sum(generation.racks_per_zone for generation in self.generation)
        return replace(self.cluster, racks_per_zone=self.cluster.racks_per_zone + racks)

    @property
    def models(self) -> tuple[ModelSection, ...]:
        """The models of devices, the one of `device` if no others are given."""
        device = self.device
        only = ModelSection(
            afr_per_year=device.afr_per_year,
            life_shape=device.life_shape,
            afr_horizon_years=device.afr_horizon_years,
        )
        return self.model or (only,)

    @property
    def incidents(self) -> tuple[IncidentSection, ...]:
        """All incidents, the outages of single nodes among them."""
        outage = IncidentSection(
            name="node",
            level="node",
            per_year=self.node.outages_per_year,
            duration_s=self.node.outage_mean_s,
        )
        return (outage, *self.incident)

    def nodes_per_domain(self, incident: IncidentSection) -> int:
        """Nodes of one domain of the incident's level."""
        cluster = self.tree
        per_zone = cluster.nodes_per_rack * cluster.racks_per_zone
        return {
            "node": 1,
            "rack": cluster.nodes_per_rack,
            "power": cluster.nodes_per_rack * incident.racks_per_domain,
            "upgrade": -(-cluster.node_count // incident.upgrade_domains),
            "zone": per_zone,
            "region": per_zone * cluster.zones_per_region,
            "cluster": cluster.node_count,
        }[incident.level]

    def incident_domains(self, incident: IncidentSection) -> int:
        """How many domains of the incident's level there are."""
        if incident.level == "upgrade":
            return min(incident.upgrade_domains, self.tree.node_count)
        return -(-self.tree.node_count // self.nodes_per_domain(incident))

    @property
    def k(self) -> int:
        return code_shape(self.code).k

    @property
    def m(self) -> int:
        return code_shape(self.code).m

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def sure_losses(self) -> int:
        """Chunks of a stripe that may be lost, whichever they are: m, or fewer for an LRC."""
        return code_shape(self.code).sure

    @property
    def raw_bytes(self) -> int:
        """Capacity of all devices that are there at the start."""
        return capacity_at(self, 0.0)

    @property
    def fill(self) -> float:
        """Share of the raw capacity taken by user data and parity."""
        return self.data.user_bytes * self.n / self.k / self.raw_bytes

    @property
    def slot_bytes(self) -> float:
        """Bytes that one PG keeps on one device: all its chunks of one index."""
        return self.data.user_bytes / (self.placement.pg_count * self.k)

    @property
    def stripe_bytes(self) -> int:
        """User bytes of one stripe of chunks of full length."""
        return self.k * self.latent.chunk_bytes

    @property
    def slots_per_device(self) -> float:
        return self.placement.pg_count * self.n / present_devices(self, 0.0)

    def topology(self) -> Topology:
        """The tree, with the capacity in TiB as each device's weight, 0 if it joins later."""
        tree = self.tree
        topology = Topology.uniform(
            region_count=tree.region_count,
            zones_per_region=tree.zones_per_region,
            racks_per_zone=tree.racks_per_zone,
            nodes_per_rack=tree.nodes_per_rack,
            devices_per_node=tree.devices_per_node,
            device_weight=self.device.capacity_bytes / 2**40,
        )
        if self.generation or self.placement.regions:
            topology = replace(topology, device_weight=frozen(weights_at(self, 0.0)))
        return topology


def preset_names() -> list[str]:
    """Names that `load_scenario` takes beside paths."""
    entries = resources.files("exastore.sim").joinpath("presets").iterdir()
    return sorted(entry.name[:-5] for entry in entries if entry.name.endswith(".toml"))


def load_scenario(path_or_preset: str | Path) -> Scenario:
    """Read a preset by name or a TOML file by path.

    Raises:
        ScenarioError: The file cannot be read or is wrong; lists every problem with its line.
    """
    name = str(path_or_preset)
    if name in preset_names():
        preset = resources.files("exastore.sim").joinpath("presets", f"{name}.toml")
        return parse_scenario(preset.read_text("utf-8"), source=f"preset {name}")
    try:
        text = Path(name).read_text("utf-8")
    except FileNotFoundError:
        known = ", ".join(preset_names())
        hint = f"there is neither such a file nor such a preset; the presets are {known}"
        raise ScenarioError(name, [Problem("", hint)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(name, [Problem("", f"cannot be read: {error}")]) from None
    return parse_scenario(text, source=name)


def parse_scenario(text: str, *, source: str = "scenario") -> Scenario:
    """Read TOML text; `source` names it in errors.

    Raises:
        ScenarioError: Lists every problem with its line.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = Problem("", f"is not TOML: {error}", syntax_error_line(str(error)))
        raise ScenarioError(source, [problem]) from None
    try:
        scenario = _adapter().validate_python(tree)
    except ValidationError as error:
        raise ScenarioError(source, problems_of(error, text, Scenario)) from None
    problems = [
        Problem(key, message, line_of(text, key)) for key, message in semantic_problems(scenario)
    ]
    if problems:
        raise ScenarioError(source, problems)
    return scenario


def semantic_problems(scenario: Scenario) -> list[tuple[str, str]]:
    """What is wrong between fields that are each right by themselves: (key, what)."""
    try:
        shape = code_shape(scenario.code)
    except ValueError as error:
        return [("code", str(error))]
    found: list[tuple[str, str]] = []
    n = shape.n
    placement = scenario.placement
    unknown = [region for region in placement.regions if region >= scenario.cluster.region_count]
    if unknown:
        text = f"names region {unknown[0]}, but there are {scenario.cluster.region_count}, from 0"
        return [("placement.regions", f"{text}; name those that are there, or none for all")]
    for level, most in placement.also:
        room = domains_at(scenario, 0.0, DomainLevel[level.upper()]) * most
        if room < n:
            text = (
                f"allows {most} chunks per {level}, which hold only {room} of the {n} of"
                f" {scenario.code}; allow more, or use more {level}s"
            )
            found.append(("placement.also", text))
    domains = domains_at(scenario, 0.0)
    places = min(domains * placement.max_per_domain, present_devices(scenario, 0.0))
    if places < n:
        found.append(
            (
                "placement.domain",
                f"{scenario.code} has k+m = {n} chunks, but {domains} {placement.domain}(s) with at"
                f" most {placement.max_per_domain} each hold only {places}; use more"
                f" {placement.domain}s, a smaller domain, a larger max_per_domain or another code",
            )
        )
    if scenario.fill > scenario.data.max_fill:
        needed = scenario.data.user_bytes * n / shape.k / scenario.data.max_fill
        devices = ceil(needed / scenario.device.capacity_bytes)
        found.append(
            (
                "data.user_bytes",
                f"{scenario.data.user_bytes} bytes of user data fill {scenario.fill:.1%} of the"
                f" devices with {scenario.code}, more than max_fill = {scenario.data.max_fill:.0%};"
                f" it takes {devices:,} devices, the cluster has"
                f" {present_devices(scenario, 0.0):,};"
                " use less data, more devices or larger ones",
            )
        )
    found += change_problems(scenario)
    found += foreground_problems(scenario)
    found += object_problems(scenario)
    found += _law_problems(scenario)
    found += _incident_problems(scenario)
    found += _latent_problems(scenario)
    found += _limit_problems(scenario)
    found += _size_problems(scenario)
    return found


def _size_problems(scenario: Scenario) -> list[tuple[str, str]]:
    """What the columns of the engine cannot number, and periods that would never end."""
    found: list[tuple[str, str]] = []
    placement, n = scenario.placement, scenario.n
    room = max(1, (n - 1).bit_length())
    if placement.pg_count << room > 2**31:
        most = 2**31 >> room
        text = f"{placement.pg_count} PGs of {n} are too many; use at most {most:,}"
        found.append(("placement.pg_count", text))
    devices = scenario.tree.device_count
    if devices >= 2**31:
        text = f"makes {devices:,} devices, more than {2**31 - 1:,}; use fewer racks"
        found.append(("cluster.racks_per_zone", text))
    if placement.policy == "copyset" and placement.scatter_width < n - 1:
        text = f"is {placement.scatter_width}, but a stripe of {scenario.code} is on {n - 1} others"
        found.append(("placement.scatter_width", f"{text}; give at least {n - 1}"))
    periods = {"balance": scenario.balance.every_s, "decisions": scenario.decisions.every_s}
    for section, every_s in periods.items():
        if 0 < every_s < _SHORTEST_PERIOD_S:
            text = f"is {every_s:g} s; give at least {_SHORTEST_PERIOD_S:g}, such as 86400"
            found.append((f"{section}.every_s", text))
    return found


def _law_problems(scenario: Scenario) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if scenario.model and not any(model.share for model in scenario.model):
        found.append(("model.0.share", "is 0, as are all others; give some model a share above 0"))
    for i, model in enumerate(scenario.model):
        key = f"model.{i}"
        ages, rates = model.hazard_from_years, model.hazard_afr_per_year
        if len(ages) != len(rates):
            text = f"has {len(rates)} rates for {len(ages)} ages; give one for each age"
            found.append((f"{key}.hazard_afr_per_year", text))
        elif ages and (ages[0] != 0 or list(ages) != sorted(set(ages))):
            text = f"is {list(ages)}; ages must begin with 0 and grow"
            found.append((f"{key}.hazard_from_years", text))
        if model.age_max_years < model.age_min_years:
            text = f"is {model.age_max_years}, below age_min_years = {model.age_min_years}"
            found.append((f"{key}.age_max_years", f"{text}; give the older age here"))
        if model.life and model.hazard_from_years:
            text = f"is {model.life!r}, but hazard_from_years is given too; leave one of both"
            found.append((f"{key}.life", text))
    placement = scenario.placement
    if (placement.policy == "custom") != bool(placement.policy_function):
        text = (
            f"is {placement.policy_function!r} and policy is {placement.policy!r}; name a function"
            ' if and only if policy is "custom"'
        )
        found.append(("placement.policy_function", text))
    if scenario.device.trace and scenario.model:
        text = "plays failures back, so that [[model]] sections have no effect; leave one of both"
        found.append(("device.trace", text))
    return found


def _incident_problems(scenario: Scenario) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for i, incident in enumerate(scenario.incident):
        key = f"incident.{i}"
        if (incident.per_year > 0) == (incident.every_years > 0):
            text = (
                f"is {incident.per_year} and every_years is {incident.every_years}; give a rate"
                " above 0 or a period above 0, not both"
            )
            found.append((f"{key}.per_year", text))
        if incident.duration_shares and not incident.durations_s:
            text = f"is {list(incident.duration_shares)}, but durations_s has nothing to share"
            found.append((f"{key}.duration_shares", f"{text}; give durations_s, or leave this out"))
        elif incident.durations_s and len(incident.durations_s) != len(incident.duration_shares):
            text = (
                f"has {len(incident.duration_shares)} shares for {len(incident.durations_s)}"
                " durations; give one for each"
            )
            found.append((f"{key}.duration_shares", text))
        if incident.level == "cluster":
            if not incident.burst_min <= incident.burst_max <= scenario.tree.node_count:
                text = (
                    f"is {incident.burst_max}; it must be from burst_min = {incident.burst_min} to"
                    f" the cluster's {scenario.tree.node_count} nodes"
                )
                found.append((f"{key}.burst_max", text))
            if incident.every_years > 0:
                text = f"is {incident.every_years}, but a burst has no calendar; give per_year"
                found.append((f"{key}.every_years", text))
    return found


def _latent_problems(scenario: Scenario) -> list[tuple[str, str]]:
    latent = scenario.latent
    met = 8 * latent.read_error_per_bit * scenario.slot_bytes * scenario.k
    if met > 1:
        text = (
            f"is {latent.read_error_per_bit:g}, so that a rebuild of {scenario.slot_bytes:.3g}"
            f" bytes from {scenario.k} chunks meets {met:.3g} errors; data sheets say 1e-15 or"
            " 1e-14, and more placement groups make shorter rebuilds"
        )
        return [("latent.read_error_per_bit", text)]
    return []


def _limit_problems(scenario: Scenario) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    repair, spares, shape = scenario.repair, scenario.spares, code_shape(scenario.code)
    links = (
        repair.node_bandwidth_bytes_per_s
        + repair.rack_bandwidth_bytes_per_s
        + repair.zone_bandwidth_bytes_per_s
    )
    if repair.transfer == "pipelined" and links == 0:
        text = "is 'pipelined', which has no effect unless a link is limited; give"
        found.append(("repair.transfer", f"{text} repair.node_bandwidth_bytes_per_s or another"))
    if repair.transfer == "pipelined" and scenario.code.startswith("clay"):
        text = "is 'pipelined', but parts of a Clay code have no partial sums; use 'whole'"
        found.append(("repair.transfer", text))
    if repair.lazy_redundancy >= shape.m:
        text = (
            f"is {repair.lazy_redundancy}, but {scenario.code} never has more than {shape.m}; use"
            f" 0 to {shape.m - 1}, or -1 to repair at once"
        )
        found.append(("repair.lazy_redundancy", text))
    if 0 < repair.fill_limit < scenario.fill:
        text = (
            f"is {repair.fill_limit:.0%}, but the devices are {scenario.fill:.1%} full at the"
            " start; give a larger limit, such as 0.95"
        )
        found.append(("repair.fill_limit", text))
    sizes = {its.capacity_bytes for its in scenario.generation} - {scenario.device.capacity_bytes}
    if repair.fill_limit > 0 and sizes - {0}:
        text = "is above 0, but generations of other sizes are not limited by it; set 0"
        found.append(("repair.fill_limit", text))
    if spares.per_zone > 0 and spares.reorder_s == 0:
        text = f"is 0, so that {spares.per_zone} spares never run out; give the time of delivery"
        found.append(("spares.reorder_s", text))
    return found


def scenario_toml(scenario: Scenario) -> str:
    """The scenario as TOML with every default written out; `parse_scenario` reads it back."""
    top: list[str] = []
    sections: list[str] = []
    for item in fields(scenario):
        value = getattr(scenario, item.name)
        if is_dataclass(value):
            sections.append("\n".join([f"[{item.name}]", *_body(value)]))
        elif isinstance(value, tuple):
            rows = value
            sections += ["\n".join([f"[[{item.name}]]", *_body(row)]) for row in rows]
        else:
            top.append(f"{item.name} = {_toml(value)}")
    return "\n\n".join(["\n".join(top), *sections]) + "\n"


def _body(section: Any) -> list[str]:
    return [f"{item.name} = {_toml(getattr(section, item.name))}" for item in fields(section)]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in cast(tuple[object, ...], value))}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


@cache
def _adapter() -> TypeAdapter[Scenario]:
    return TypeAdapter(Scenario)
