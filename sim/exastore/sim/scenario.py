"""Scenarios: what is simulated, read from TOML, with every error at once and its place.

A scenario is a value: frozen dataclasses whose field names end in their unit. `load_scenario`
reads a file or a preset; `parse_scenario` reads text; `scenario_toml` writes one back.
"""

import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from importlib import resources
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from exastore.metadata.core.topology import DomainLevel, PlacementRule, Topology
from exastore.sim.codes import code_shape
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.toml_lines import line_of, syntax_error_line

#: Seconds in a year of 365.25 days, the year of every rate here.
YEAR_S = 365.25 * 86_400.0

Count = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]


@dataclass(frozen=True, slots=True)
class ClusterSection:
    """A regular tree of failure domains."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    racks_per_zone: Count
    nodes_per_rack: Count
    devices_per_node: Count
    region_count: Count = 1
    zones_per_region: Count = 1

    @property
    def zone_count(self) -> int:
        return self.region_count * self.zones_per_region

    @property
    def rack_count(self) -> int:
        return self.zone_count * self.racks_per_zone

    @property
    def node_count(self) -> int:
        return self.rack_count * self.nodes_per_rack

    @property
    def device_count(self) -> int:
        return self.node_count * self.devices_per_node

    def domain_count(self, level: DomainLevel) -> int:
        """How many failure domains there are at `level`."""
        counts = (self.device_count, self.node_count, self.rack_count, self.zone_count)
        return (*counts, self.region_count)[level]


@dataclass(frozen=True, slots=True)
class DeviceSection:
    """One device model for the whole cluster.

    Attributes:
        capacity_bytes: Bytes of one device.
        afr_per_year: Share of devices that fail in a year; the rate is -ln(1 - AFR) per year.
        life_shape: Shape of the Weibull law of life; 1 is the exponential law.
        afr_horizon_years: For a shape other than 1: the AFR holds as the mean over this many
            years, so that survival to that age is (1 - AFR) ** years.
        replacement_delay_s: From detection until an empty device is in the failed one's place.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    capacity_bytes: Count
    afr_per_year: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0136
    life_shape: Annotated[float, Field(strict=True, gt=0, le=10)] = 1.0
    afr_horizon_years: Positive = 5.0
    replacement_delay_s: Seconds = 86_400.0


@dataclass(frozen=True, slots=True)
class NodeSection:
    """Transient outages: the node is away, its data comes back with it.

    Attributes:
        outages_per_year: Mean outages of one node in a year of uptime; 0 for none. The default
            is one in 4.3 months (Ford et al., OSDI 2010).
        outage_mean_s: Mean length; the law is exponential. 900 / ln(10) s puts 90 % of outages
            under 15 minutes (same source).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    outages_per_year: Annotated[float, Field(strict=True, ge=0, le=8_766)] = 12 / 4.3
    outage_mean_s: Positive = 390.865


@dataclass(frozen=True, slots=True)
class PlacementSection:
    """How chunks are spread.

    Attributes:
        pg_count: Placement groups; about 100 slots per device balance to a tenth.
        domain: The failure domain that holds at most `max_per_domain` chunks of a stripe.
        balanced: Whether the balancer evens out the placement before time zero, as a new cluster
            does. During the run nothing is balanced.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    pg_count: Count
    domain: Literal["device", "node", "rack", "zone", "region"] = "rack"
    max_per_domain: Count = 1
    balanced: Annotated[bool, Field(strict=True)] = True

    @property
    def rule(self) -> PlacementRule:
        return PlacementRule(DomainLevel[self.domain.upper()], self.max_per_domain)


@dataclass(frozen=True, slots=True)
class DataSection:
    """What the cluster holds.

    Attributes:
        user_bytes: Bytes of user data, before coding, constant over the run.
        max_fill: Largest share of the raw capacity that user data and parity may take.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    user_bytes: Count
    max_fill: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.8


@dataclass(frozen=True, slots=True)
class RepairSection:
    """When and how fast lost chunks are rebuilt.

    Attributes:
        detection_delay_s: From the failure of a device until the cluster knows it for dead.
        out_after_s: A node away for this long is given up and its chunks are rebuilt.
        write_bandwidth_bytes_per_s: What one device takes in for rebuilding.
        read_bandwidth_bytes_per_s: What one device gives to the rebuilds that read from it.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    detection_delay_s: Seconds = 60.0
    out_after_s: Seconds = 900.0
    write_bandwidth_bytes_per_s: Positive = 50e6
    read_bandwidth_bytes_per_s: Positive = 50e6


@dataclass(frozen=True, slots=True)
class RunSection:
    """How much is simulated; the command line may say otherwise."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    years: Annotated[float, Field(strict=True, gt=0, le=1_000)] = 10.0
    trials: Count = 1
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a run needs but its seed; see the sections.

    Attributes:
        code: Name of the code, such as "rs-10-4".
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Text
    code: Text
    cluster: ClusterSection
    device: DeviceSection
    placement: PlacementSection
    data: DataSection
    description: Text = ""
    node: NodeSection = field(default_factory=NodeSection)
    repair: RepairSection = field(default_factory=RepairSection)
    run: RunSection = field(default_factory=RunSection)

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
        """Capacity of all devices."""
        return self.cluster.device_count * self.device.capacity_bytes

    @property
    def fill(self) -> float:
        """Share of the raw capacity taken by user data and parity."""
        return self.data.user_bytes * self.n / self.k / self.raw_bytes

    @property
    def slot_bytes(self) -> float:
        """Bytes that one PG keeps on one device: all its chunks of one index."""
        return self.data.user_bytes / (self.placement.pg_count * self.k)

    @property
    def slots_per_device(self) -> float:
        return self.placement.pg_count * self.n / self.cluster.device_count

    def topology(self) -> Topology:
        """The tree, with the capacity in TiB as each device's weight."""
        return Topology.uniform(
            region_count=self.cluster.region_count,
            zones_per_region=self.cluster.zones_per_region,
            racks_per_zone=self.cluster.racks_per_zone,
            nodes_per_rack=self.cluster.nodes_per_rack,
            devices_per_node=self.cluster.devices_per_node,
            device_weight=self.device.capacity_bytes / 2**40,
        )


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
        raise ScenarioError(source, _problems(error, text)) from None
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
    domains = scenario.cluster.domain_count(placement.rule.level)
    places = min(domains * placement.max_per_domain, scenario.cluster.device_count)
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
                f" it takes {devices:,} devices, the cluster has {scenario.cluster.device_count:,}",
            )
        )
    slot_limit = 2**31
    if placement.pg_count << max(1, (n - 1).bit_length()) > slot_limit:
        found.append(("placement.pg_count", f"{placement.pg_count} PGs of {n} are too many"))
    return found


def scenario_toml(scenario: Scenario) -> str:
    """The scenario as TOML with every default written out; `parse_scenario` reads it back."""
    top: list[str] = []
    sections: list[str] = []
    for item in fields(scenario):
        value = getattr(scenario, item.name)
        if is_dataclass(value):
            body = [f"{sub.name} = {_toml(getattr(value, sub.name))}" for sub in fields(value)]
            sections.append("\n".join([f"[{item.name}]", *body]))
        else:
            top.append(f"{item.name} = {_toml(value)}")
    return "\n\n".join(["\n".join(top), *sections]) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


@cache
def _adapter() -> TypeAdapter[Scenario]:
    return TypeAdapter(Scenario)


def _problems(error: ValidationError, text: str) -> list[Problem]:
    found: list[Problem] = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        found.append(Problem(key, _say(item), line_of(text, key)))
    return sorted(found, key=lambda problem: (problem.line, problem.key))


def _say(item: Any) -> str:
    """A sentence for one pydantic error."""
    kind, given = item["type"], item.get("input")
    if kind in {"missing", "missing_argument"}:
        return "is required and not given"
    if kind in {"unexpected_keyword_argument", "extra_forbidden"}:
        return "is not a key of a scenario; check its spelling and its section"
    if kind in {"dataclass_type", "dataclass_exact_type"}:
        return f"must be a section, written as [name], not {given!r}"
    message: str = item["msg"]
    return f"{message.replace('Input should', 'should')}, not {given!r}"
