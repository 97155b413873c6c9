"""Published figures with their printed parameters, by this very engine and placement.

Every row of mlec-sim's small pools and of its first year under Weibull lives, Venkatesan and
Iliadis's replication, and the spread of placement. Of pools in time is
accepted: 3 combined sigma of the printed simulation and ours, and 0.1 nines of the formula of the
same clock of repair. One trial is a mission of 365.25 days of whole, new disks.
"""

import time
from functools import cache
from math import expm1, gamma, log, log10, sqrt
from statistics import median

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.metadata.core.balance import slots_per_device
from exastore.metadata.core.balancer import apply_balance_to_rows, plan_balance_of_rows
from exastore.metadata.core.placement import place_with_columns, placement_columns
from exastore.metadata.core.topology import DomainLevel, PlacementRule, Topology
from exastore.sim import OverlapOptions, load_scenario, parse_scenario, simulate_durability
from exastore.sim.overlap import FAILURES
from exastore.sim.overlap_run import OverlapRun

pytestmark = [pytest.mark.verify, pytest.mark.timeout(3600)]

#: 20 TB with a kilo of 1024, in bytes: the reading that fits the printed data.
CAPACITY = 20 * 1024**2 * 10**6
#: Losses that suffice: sigma is 0.022 nines then.
ENOUGH_LOSSES = 400
MOST_TRIALS = 60_000_000

POOL = """
name = "pool"
code = "rs-{k}-{m}"
cluster = {{racks_per_zone = 1, nodes_per_rack = 1, devices_per_node = {devices}}}
device = {{capacity_bytes = {capacity}, afr_per_year = {afr}, life_shape = {shape}}}
node = {{outages_per_year = 0}}
placement = {{pg_count = {groups}, domain = "device", balanced = false}}
data = {{user_bytes = {user_bytes}, max_fill = 1.0}}
run = {{years = 1}}
[repair]
detection_delay_s = 0
write_bandwidth_bytes_per_s = {write}
read_bandwidth_bytes_per_s = {read}
"""

#: AFR in percent; nines and sigma of the printed simulation, nines of the formula: clustered with
#: one clock per disk, clustered with one per group, declustered.
T3 = [
    (2, (6.135, 0.093, 6.183), (5.882, 0.095, 5.882), (6.621, 0.091, 6.567)),
    (3, (5.620, 0.089, 5.649), (5.335, 0.071, 5.347), (5.903, 0.097, 6.032)),
    (5, (4.991, 0.043, 4.969), (4.618, 0.031, 4.668), (5.323, 0.070, 5.353)),
    (7, (4.463, 0.023, 4.517), (4.202, 0.019, 4.216), (4.862, 0.041, 4.901)),
    (10, (4.029, 0.014, 4.032), (3.717, 0.011, 3.731), (4.370, 0.024, 4.415)),
]
CASES = [
    (afr, kind, *figures)
    for afr, *rest in T3
    for kind, figures in zip(("device", "group", "declustered"), rest, strict=True)
]
#: Shape; k, m, disks, AFR in percent; nines and sigma of the printed simulation, and of the closed
#: form.
T3B = [
    (1.0, 7, 1, 8, 1, 4.105, 0.015, 4.124),
    (1.4, 7, 1, 8, 1, 4.676, 0.030, 4.646),
    (2.0, 7, 1, 8, 1, 5.398, 0.069, 5.397),
    (1.0, 7, 1, 80, 1, 3.129, 0.005, 3.124),
    (1.4, 7, 1, 80, 1, 3.633, 0.009, 3.646),
    (2.0, 7, 1, 80, 1, 4.416, 0.022, 4.397),
    (1.0, 8, 2, 100, 2, 4.967, 0.042, 4.979),
    (1.4, 8, 2, 100, 2, 5.658, 0.093, 5.722),
    (2.0, 8, 2, 100, 2, 6.882, 0.095, 6.775),
]


@cache
def nines_of(
    layout: str, clock: str, k: int, m: int, devices: int, afr: float, shape: float, io: float
) -> tuple[float, float]:
    """Nines of a mission and their sigma, from as many trials as it takes."""
    groups = devices // (k + m)
    # Disks of one bandwidth for both: k + 1 bytes of it rebuild one byte anywhere.
    is_declustered = layout == "unlimited"
    scenario = parse_scenario(
        POOL.format(
            k=k,
            m=m,
            devices=devices,
            capacity=CAPACITY,
            afr=afr,
            shape=shape,
            groups=groups,
            user_bytes=CAPACITY * groups * k,
            write=1e15 if is_declustered else io,
            read=io * k / (k + 1) if is_declustered else io,
        )
    )
    options = OverlapOptions(layout, clock)  # type: ignore[arg-type]
    trials, lost, batch = 0, 0, 2_000_000
    while lost < ENOUGH_LOSSES and trials < MOST_TRIALS:
        results = simulate_durability(
            scenario, trials=batch, options=options, seed=trials, workers=2
        )
        trials += batch
        lost += results.total("trials_with_loss")
    print(f"{layout} {clock} {k}+{m} {devices} disks AFR {afr:.0%} shape {shape}: {lost}/{trials}")
    return -log10(lost / trials), 1 / (log(10) * sqrt(lost))


@pytest.mark.parametrize(("afr", "kind", "nines", "sigma", "formula"), CASES)
def test_fifty_disks_of_8_2_lose_data_as_often_as_printed(
    afr: int, kind: str, nines: float, sigma: float, formula: float
) -> None:
    layout, clock = ("unlimited", "priority") if kind == "declustered" else ("clustered", kind)
    found, ours = nines_of(layout, clock, 8, 2, 50, afr / 100, 1.0, 100e6)
    print(f"{kind} AFR {afr} %: {found:.3f} ({ours:.3f}), printed {nines} ({sigma}), {formula}")
    assert abs(found - nines) < 3 * sqrt(ours**2 + sigma**2)
    assert abs(found - formula) < 0.1 + 3 * ours


@pytest.mark.parametrize(("shape", "k", "m", "devices", "afr", "nines", "sigma", "formula"), T3B)
def test_the_first_year_under_weibull_lives_is_as_printed(
    shape: float, k: int, m: int, devices: int, afr: int, nines: float, sigma: float, formula: float
) -> None:
    found, ours = nines_of("clustered", "group", k, m, devices, afr / 100, shape, 50e6)
    print(f"shape {shape} {k}+{m} {devices}: {found:.3f} ({ours:.3f}), printed {nines} ({sigma})")
    assert abs(found - nines) < 3 * sqrt(ours**2 + sigma**2)
    assert abs(found - formula) < 0.1 + 3 * ours


@pytest.mark.parametrize("shape", [0.7, 1.0, 1.2])
@pytest.mark.parametrize(("copies", "life_h", "devices"), [(2, 10_000.0, 48), (3, 1_000.0, 48)])
def test_clustered_copies_last_as_long_as_venkatesan_and_iliadis_say(
    shape: float, copies: int, life_h: float, devices: int
) -> None:
    # QEST 2012: 12 TB a node at 96 MB/s, so 34.72 h; mu / (n la^2) and mu^2 / (n la^3) for every
    # law of life. Loss is counted over years in which lives have become stationary.
    scale_years = life_h / 8_766 / gamma(1 + 1 / shape)
    afr = -expm1(-(scale_years**-shape) * 5.0 ** (shape - 1.0))
    scenario = parse_scenario(
        POOL.format(
            k=1,
            m=copies - 1,
            devices=devices,
            capacity=12 * 10**12,
            afr=afr,
            shape=shape,
            groups=devices // copies,
            user_bytes=12 * 10**12 * (devices // copies),
            write=96e6,
            read=96e6,
        )
        .replace(f"rs-1-{copies - 1}", f"rep-{copies}")
        .replace("years = 1", "years = 400")
    )
    trials = 20 if copies == 2 else 40
    results = simulate_durability(
        scenario, trials=trials, options=OverlapOptions("clustered", "device"), seed=1
    )
    events = results.total("loss_events")
    mu, failure = 96e6 * 3_600 / 12e12, 1 / life_h
    expected_h = mu ** (copies - 1) / (devices * failure**copies)
    found_h = trials * 400 * 8_766 / events
    print(f"{copies} copies, shape {shape}: {found_h:.4g} h of {expected_h:.4g} h, {events} losses")
    assert events > 300
    # mu >> la: the formula neglects terms of la / mu, 0.3 % and 3 to 10 %.
    assert found_h == pytest.approx(expected_h, rel=0.12 + 3 / sqrt(events))


def _spread(topology: Topology, rule: PlacementRule, groups: int, width: int) -> NDArray[np.int64]:
    columns = placement_columns(topology, rule)
    rows = place_with_columns(columns, groups, width, seed=1)
    return slots_per_device(rows, topology.device_count)


@pytest.mark.parametrize(
    ("devices", "groups", "mean", "stddev", "balanced"),
    [(381, 12_288, 96.7559, 9.82354, 0.729), (72, 4_144, 172.667, 13.0487, 0.471)],
)
def test_placement_spreads_and_balances_as_published_for_ceph(
    devices: int, groups: int, mean: float, stddev: float, balanced: float
) -> None:
    topology = Topology.uniform(racks_per_zone=1, nodes_per_rack=devices, devices_per_node=1)
    rule = PlacementRule(DomainLevel.NODE)
    assert sqrt(mean * (1 - 1 / devices)) == pytest.approx(stddev, abs=5e-5)
    slots = _spread(topology, rule, groups, 3)
    assert slots.mean() == pytest.approx(mean, abs=5e-4)
    assert abs(slots.std() - stddev) < 3 * stddev / sqrt(2 * devices)
    fullest = mean + sqrt(2 * mean * log(devices))
    assert slots.max() == pytest.approx(fullest, rel=0.06)
    columns = placement_columns(topology, rule)
    rows = place_with_columns(columns, groups, 3, seed=1)
    even = apply_balance_to_rows(rows, plan_balance_of_rows(columns, rows, seed=1))
    assert slots_per_device(even, devices).std() <= balanced + 5e-4


def test_placement_on_9600_devices_spreads_as_crushtools() -> None:
    topology = Topology.uniform(racks_per_zone=40, nodes_per_rack=12, devices_per_node=20)
    slots = _spread(topology, PlacementRule(DomainLevel.RACK), 68_571, 14)
    mean = slots.mean()
    assert slots.std() / mean == pytest.approx(0.0999, abs=3 * 0.0999 / sqrt(2 * 9_600))
    # Extremes of 9,600 devices vary with the seed; 1 + sqrt(2 ln N / mean) is 1.43.
    assert slots.max() / mean == pytest.approx(1.38, abs=0.1)
    assert slots.min() / mean == pytest.approx(0.70, abs=0.1)


@pytest.mark.parametrize("layout", ["unlimited", "placed"])
def test_a_core_simulates_over_seven_thousand_years_a_second_of_mlec_sims_setting(
    layout: str,
) -> None:
    # mlec-sim does about 7 of them a second: 57,600 disks, 10+2 over 60 racks, AFR 1 %.
    scenario = load_scenario("mlec")
    options = OverlapOptions(layout)  # type: ignore[arg-type]
    made = OverlapRun(scenario, options, seed=1)
    counter, _ = made.block(0, 1)  # compiles
    rates: list[float] = []
    for first in range(0, 20_000, 4_000):
        begin_s = time.thread_time()
        counter, _ = made.block(first, 4_000)
        rates.append(4_000 / (time.thread_time() - begin_s))
    failures = counter[FAILURES] / 4_000
    print(f"{layout}: {median(rates):,.0f} years/s of one core, best {max(rates):,.0f},")
    print(f"{1e9 / (median(rates) * failures):.0f} ns per failure, {failures:.0f} failures a year")
    assert max(rates) > 7_000
