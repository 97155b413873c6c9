"""The sections of a scenario: frozen dataclasses whose field names end in their unit.

`docs/simulator.md` documents every field for users; the docstrings here are its source.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from exastore.metadata.core.topology import DomainLevel, PlacementRule

Count = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
Name = Annotated[str, Field(strict=True, min_length=1)]


@dataclass(frozen=True, slots=True)
class ClusterSection:
    """A regular tree of failure domains.

    Attributes:
        leaves_years: When these racks begin to be emptied and then go; 0: never.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    racks_per_zone: Count
    nodes_per_rack: Count
    devices_per_node: Count
    region_count: Count = 1
    zones_per_region: Count = 1
    leaves_years: Seconds = 0.0

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
class ModelSection:
    """One model of device of several; whole nodes have one model.

    A bad batch is a model with a small share and a large AFR; an older generation is one with ages.

    Attributes:
        share: Of the nodes, relative to the other models; 0: only of generations that ask for it.
        afr_per_year: As in `DeviceSection`.
        life_shape: As there.
        afr_horizon_years: As there.
        age_min_years: Ages at time zero are uniform between this and `age_max_years`.
        age_max_years: See there. Replacements are new.
        hazard_from_years: Ages at which the hazard changes, the first 0: a bathtub, or rates by age
            as found in the field. Empty: the Weibull law.
        hazard_afr_per_year: The AFR from each of these ages on; the last one stays.
        life: A function of your own instead, see `user`.
        life_params: Its parameters.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    share: Seconds = 1.0
    afr_per_year: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0136
    life_shape: Annotated[float, Field(strict=True, gt=0, le=10)] = 1.0
    afr_horizon_years: Positive = 5.0
    age_min_years: Seconds = 0.0
    age_max_years: Seconds = 0.0
    hazard_from_years: tuple[Seconds, ...] = ()
    hazard_afr_per_year: tuple[Annotated[float, Field(strict=True, ge=0, lt=1)], ...] = ()
    life: Text = ""
    life_params: tuple[Annotated[float, Field(strict=True)], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationSection:
    """Racks of another make than those of `cluster`: more or larger devices, now or later.

    Attributes:
        name: For people.
        racks_per_zone: Racks of this generation in each zone, of the cluster's nodes and devices.
        capacity_bytes: Of each of its devices; 0: as `device.capacity_bytes`.
        joins_years: When they join, empty and new; 0: they are there from the start.
        leaves_years: When they begin to be emptied, to go once they are empty; 0: never.
        model: Which `[[model]]` its devices are, from 0; -1: drawn like all others.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Name
    racks_per_zone: Count
    capacity_bytes: Annotated[int, Field(strict=True, ge=0)] = 0
    joins_years: Seconds = 0.0
    leaves_years: Seconds = 0.0
    model: Annotated[int, Field(strict=True, ge=-1)] = -1


@dataclass(frozen=True, slots=True)
class BalanceSection:
    """Moves of whole chunk runs during the run, planned by the cluster's balancer.

    Attributes:
        every_s: Moves are carried out in periods of this length; 0: nothing is moved.
        bandwidth_bytes_per_s: What one device sends, and what one takes, for moves: one run at a
            time each way. Besides what repair has.
        max_misplaced_share: Of all chunk runs, the most that one period moves. The default is
            Ceph's `target_max_misplaced_ratio`.
        replan_every_s: How often a plan is made while nothing joins or leaves.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    every_s: Seconds = 0.0
    bandwidth_bytes_per_s: Positive = 28.5e6
    max_misplaced_share: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.05
    replan_every_s: Positive = 2_629_800.0


@dataclass(frozen=True, slots=True)
class IncidentSection:
    """Something that takes nodes away; see `docs/simulator.md` for published ones.

    Attributes:
        name: For people.
        level: The domain it befalls: "node", "rack", "power" (`racks_per_domain` racks),
            "upgrade" (one of `upgrade_domains`), "zone", "region", or "cluster": a burst over nodes
            of all of it.
        per_year: Mean number in one such domain per year without it; 0 if by calendar.
        every_years: By calendar instead: once per period in each domain, one after the other.
        duration_s: Length if there is one only.
        duration_law: "exponential": drawn with that mean; "fixed": just so long.
        durations_s: Lengths to choose from, instead of `duration_s`.
        duration_shares: How often each is chosen, relative to the others.
        hit_share: Of the domain's nodes, how many are hit.
        death_share: Of those hit, how many lose their devices for good.
        gives_up: Whether the cluster gives nodes up at the out-timer; if not it waits.
        racks_per_domain: Of level "power".
        upgrade_domains: Of level "upgrade": node i is in upgrade domain i modulo this many, so that
            the nodes of a rack are spread over them.
        burst_min: Nodes of a burst, at least; uniform up to `burst_max`.
        burst_max: Nodes of a burst, at most.
        rack_affinity: How often the next node of a burst is in the rack of the one before.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Name
    level: Literal["node", "rack", "power", "upgrade", "zone", "region", "cluster"]
    per_year: Annotated[float, Field(strict=True, ge=0, le=1e6)] = 0.0
    every_years: Seconds = 0.0
    duration_s: Positive = 3600.0
    duration_law: Literal["exponential", "fixed"] = "exponential"
    durations_s: tuple[Positive, ...] = ()
    duration_shares: tuple[Positive, ...] = ()
    hit_share: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    death_share: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    gives_up: Annotated[bool, Field(strict=True)] = True
    racks_per_domain: Count = 1
    upgrade_domains: Count = 5
    burst_min: Count = 2
    burst_max: Count = 2
    rack_affinity: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0


@dataclass(frozen=True, slots=True)
class DeviceSection:
    """The devices. With `[[model]]` sections, the laws of life here are not used.

    Attributes:
        capacity_bytes: Bytes of one device.
        afr_per_year: Share of devices that fail in a year; the rate is -ln(1 - AFR) per year.
        life_shape: Shape of the Weibull law of life; 1 is the exponential law.
        afr_horizon_years: For a shape other than 1: the AFR holds as the mean over this many
            years, so that survival to that age is (1 - AFR) ** years.
        replacement_delay_s: From detection until an empty device is in the failed one's place.
        trace: A CSV or Parquet file of failures that are played back instead of drawn; see
            `trace`. "": none.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    capacity_bytes: Annotated[int, Field(strict=True, ge=1, lt=2**63)]
    afr_per_year: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0136
    life_shape: Annotated[float, Field(strict=True, gt=0, le=10)] = 1.0
    afr_horizon_years: Positive = 5.0
    replacement_delay_s: Seconds = 86_400.0
    trace: Text = ""


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
        also: More limits, as pairs of a level and the most chunks of a stripe in one such domain.
        regions: Residency: the regions that may hold the data; none: all of them.
        policy: How rows are made: "straw2", CRUSH's draws; "random-declustered", dealt from a
            shuffled deck, even by itself and many times as fast; "copyset". All three are the
            cluster's own; replacements are chosen by straw2 whatever the policy.
        policy_function: Of "custom": your own, see `user`.
        scatter_width: Of "copyset": peers that share data with a device.
        balanced: Whether the balancer evens out the placement before time zero, as a new cluster
            does. During the run `balance` decides.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    pg_count: Count
    domain: Literal["device", "node", "rack", "zone", "region"] = "rack"
    max_per_domain: Count = 1
    also: tuple[tuple[Literal["node", "rack", "zone", "region"], Count], ...] = ()
    regions: tuple[Annotated[int, Field(strict=True, ge=0)], ...] = ()
    policy: Literal["straw2", "random-declustered", "copyset", "custom"] = "straw2"
    policy_function: Text = ""
    scatter_width: Count = 100
    balanced: Annotated[bool, Field(strict=True)] = True

    @property
    def rule(self) -> PlacementRule:
        return PlacementRule(
            DomainLevel[self.domain.upper()],
            self.max_per_domain,
            also=tuple((DomainLevel[level.upper()], most) for level, most in self.also),
            regions=self.regions or None,
        )


@dataclass(frozen=True, slots=True)
class DataSection:
    """What the cluster holds.

    Attributes:
        user_bytes: Bytes of user data, before coding, at time zero.
        max_fill: Largest share of the raw capacity that user data and parity may take.
        growth_per_year: By which share the data grows in a year; it does so month by month.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    user_bytes: Annotated[int, Field(strict=True, ge=1, lt=2**80)]
    max_fill: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.8
    growth_per_year: Annotated[float, Field(strict=True, ge=0, le=10)] = 0.0


@dataclass(frozen=True, slots=True)
class RepairSection:
    """When and how fast lost chunks are rebuilt.

    Attributes:
        detection_delay_s: From the failure of a device until the cluster knows it for dead.
        out_after_s: A node away for this long is given up and its chunks are rebuilt.
        write_bandwidth_bytes_per_s: What one device takes in for rebuilding.
        read_bandwidth_bytes_per_s: What one device gives to the rebuilds that read from it.
        node_bandwidth_bytes_per_s: What a node's link gives to rebuilds, each way; 0: no limit.
        rack_bandwidth_bytes_per_s: What a rack's uplink gives, each way; 0: no limit.
        zone_bandwidth_bytes_per_s: What a zone's link to the others gives, each way; 0: no limit.
        priority: A function of your own that orders rebuilds, see `user`; "": the cluster's.
        transfer: "whole": every source sends to the target; "pipelined": partial sums from source
            to source.
        lazy_redundancy: A PG is repaired once it can lose no more than so many further chunks;
            until then its missing chunks wait. -1: at once.
        fill_limit: A device takes no rebuild that fills it beyond this share; 0: no limit.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    detection_delay_s: Seconds = 60.0
    out_after_s: Seconds = 900.0
    write_bandwidth_bytes_per_s: Positive = 50e6
    read_bandwidth_bytes_per_s: Positive = 50e6
    node_bandwidth_bytes_per_s: Seconds = 0.0
    rack_bandwidth_bytes_per_s: Seconds = 0.0
    zone_bandwidth_bytes_per_s: Seconds = 0.0
    priority: Text = ""
    transfer: Literal["whole", "pipelined"] = "whole"
    lazy_redundancy: Annotated[int, Field(strict=True, ge=-1)] = -1
    fill_limit: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0


@dataclass(frozen=True, slots=True)
class ForegroundSection:
    """Requests of clients, at a steady rate; see `foreground`.

    Attributes:
        reads_per_s: Per second and device of the cluster, whole objects.
        writes_per_s: The same.
        deletes_per_s: The same.
        object_bytes: Sizes of objects.
        object_shares: How often each is asked for, relative to the others.
        chunk_bytes: An object lies on as few data chunks as hold so much each, at most k.
        device_bandwidth_bytes_per_s: Of one device, with nothing else to do. The default is that
            of a 24 TB drive.
        positioning_s: What each operation takes besides. The default is half a turn at 7,200 per
            minute and 8 ms of seek.
        node_link_bytes_per_s: Size of a node's link, each way, shared with repair; 0: no limit.
        rack_link_bytes_per_s: The same of a rack's uplink.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    reads_per_s: Seconds = 0.0
    writes_per_s: Seconds = 0.0
    deletes_per_s: Seconds = 0.0
    object_bytes: tuple[Positive, ...] = (1e6,)
    object_shares: tuple[Positive, ...] = (1.0,)
    chunk_bytes: Positive = 1048576.0
    device_bandwidth_bytes_per_s: Positive = 285e6
    positioning_s: Seconds = 0.0122
    node_link_bytes_per_s: Seconds = 0.0
    rack_link_bytes_per_s: Seconds = 0.0

    @property
    def is_on(self) -> bool:
        """Whether there are any requests."""
        return self.reads_per_s + self.writes_per_s + self.deletes_per_s > 0.0


@dataclass(frozen=True, slots=True)
class DecisionsSection:
    """A function of your own that is asked by the calendar.

    Attributes:
        function: See `user`; "": none.
        every_s: How often it is asked.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    function: Text = ""
    every_s: Positive = 86_400.0


@dataclass(frozen=True, slots=True)
class ObjectsSection:
    """Which objects are stored, to state losses in objects; see `objects` for the formula.

    Attributes:
        sizes_bytes: Sizes of objects.
        shares: How many objects have each, relative to the others.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    sizes_bytes: tuple[Positive, ...] = (1e6,)
    shares: tuple[Positive, ...] = (1.0,)


@dataclass(frozen=True, slots=True)
class SparesSection:
    """The stock of spare devices; off unless `reorder_s` is above 0.

    Attributes:
        per_zone: Spares in stock in each zone. One taken is ordered at once.
        reorder_s: From the order until it is there.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    per_zone: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = 0
    reorder_s: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class LatentSection:
    """Latent sector errors; see `latent` for the law. Off unless a rate is above 0.

    Attributes:
        onset_per_year: Hazard of the first error of a device; 0: none. Published of nearline
            disks: 0.0325 (8.5 % within 32 months: Bairavasundaram, thesis 3.3.1).
        errors_per_year: Further errors of an affected device, on average. 14 gives the published
            mean of 19.7 errors of affected disks (same source).
        read_error_per_bit: Unreadable bits as data sheets have them, 1e-15: found by the read
            itself, whatever was scrubbed.
        scrub_period_s: Every chunk is read once in this time; 0: never. 14 days take 19.8 MB/s of
            a device of 24 TB.
        chunk_bytes: A lost stripe loses k times this. The cluster's chunks are at most this long.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    onset_per_year: Annotated[float, Field(strict=True, ge=0, le=8_766)] = 0.0
    errors_per_year: Annotated[float, Field(strict=True, gt=0, le=1e9)] = 14.0
    read_error_per_bit: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    scrub_period_s: Seconds = 1_209_600.0
    chunk_bytes: Count = 4_194_304


@dataclass(frozen=True, slots=True)
class RunSection:
    """How much is simulated; the command line may say otherwise."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    years: Annotated[float, Field(strict=True, gt=0, le=1_000)] = 10.0
    trials: Count = 1
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
