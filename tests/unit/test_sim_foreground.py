"""Requests of clients: what they leave to repair, and the estimate of latency against queues."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.sim import Scenario, ScenarioError, load_scenario, parse_scenario, run, scenario_toml
from exastore.sim.foreground import (
    Operations,
    Queue,
    client_operations,
    degraded_chunks,
    repair_budgets,
    service_of,
)
from exastore.sim.sections import ForegroundSection


def with_mix(mix: ForegroundSection) -> Scenario:
    return replace(load_scenario("tiny"), foreground=mix)


@pytest.mark.parametrize(
    ("code", "chunks", "expected"),
    [
        # Reed-Solomon: k chunks whatever is read, so that one of k costs k times as much.
        ("rs-6-3", 1, 6.0),
        ("rs-6-3", 6, 6.0),
        # A local group of 3 data chunks and its parity; a whole read lacks the parity alone.
        ("lrc-6-2-2", 1, 3.0),
        ("lrc-6-2-2", 6, 6.0),
        # Half a chunk of each of the five others.
        ("clay-4-2-5", 1, 2.5),
        ("rep-3", 1, 1.0),
    ],
)
def test_a_degraded_read_reads_what_the_plan_of_the_code_says(
    code: str, chunks: int, expected: float
) -> None:
    assert degraded_chunks(code, chunks) == pytest.approx(expected)


def test_without_requests_repair_has_what_the_scenario_says() -> None:
    scenario = load_scenario("tiny")
    budgets = repair_budgets(scenario)
    assert budgets.write_bytes_per_s == scenario.repair.write_bandwidth_bytes_per_s
    assert budgets.node_bytes_per_s == np.inf


def test_requests_leave_less_of_devices_and_links_to_repair() -> None:
    # Reads of one chunk of 2.85 MB: 10 ms of transfer, no positioning, 60 a second: 60 % busy.
    mix = ForegroundSection(
        reads_per_s=60.0,
        object_bytes=(2.85e6,),
        chunk_bytes=2.85e6,
        positioning_s=0.0,
        node_link_bytes_per_s=2e9,
    )
    scenario = with_mix(mix)
    repair = replace(
        scenario.repair, write_bandwidth_bytes_per_s=1e8, read_bandwidth_bytes_per_s=2e8
    )
    budgets = repair_budgets(replace(scenario, repair=repair))
    assert budgets.write_bytes_per_s == pytest.approx(0.4 * 285e6 / 3)
    assert budgets.read_bytes_per_s == pytest.approx(0.4 * 285e6 * 2 / 3)
    per_node = scenario.cluster.devices_per_node * 60 * 2.85e6
    assert budgets.node_bytes_per_s == pytest.approx(2e9 - per_node)


def test_rebuilds_take_longer_beside_requests() -> None:
    quiet = run(load_scenario("tiny"), trials=1, seed=1).trials.to_pylist()[0]
    mix = ForegroundSection(reads_per_s=40.0, object_bytes=(4e6,), chunk_bytes=4e6)
    busy = run(with_mix(mix), trials=1, seed=1).trials.to_pylist()[0]
    assert busy["mean_missing_s"] > 1.3 * quiet["mean_missing_s"]


def _simulated_waits(
    chunks: int, per_s: float, sizes: tuple[float, float], devices: int, seed: int
) -> NDArray[np.float64]:
    """How long reads of `chunks` of `devices` wait at most, request by request, and their service.

    Half of the requests have operations of the first size, half of the second.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    count = 60_000
    times = np.cumsum(rng.exponential(chunks / (per_s * devices), count))
    services = np.where(rng.random(count) < 0.5, *sizes)
    chosen = rng.random((count, devices)).argpartition(chunks, axis=1)[:, :chunks]
    free = np.zeros(devices)
    ends = np.zeros(count)
    for i in range(count):
        mine = chosen[i]
        done = np.maximum(free[mine], times[i]) + services[i]
        free[mine] = done
        ends[i] = done.max() - times[i]
    return ends[count // 10 :]


@pytest.mark.parametrize("chunks", [1, 6])
@pytest.mark.parametrize("load", [0.4, 0.75])
def test_the_estimate_of_latency_agrees_with_queues_request_by_request(
    chunks: int, load: float
) -> None:
    sizes = (0.010, 0.030)
    per_s = load / float(np.mean(sizes))
    found = _simulated_waits(chunks, per_s, sizes, devices=240, seed=chunks)
    queue = Queue.of([Operations(per_s / 2, size) for size in sizes])
    assert queue.utilisation == pytest.approx(load)
    mean = queue.mean_of_slowest_s(chunks) + np.mean(sizes)
    assert mean == pytest.approx(found.mean(), rel=0.08)
    p99 = float(np.quantile(found, 0.99))
    too_soon, late_enough = (
        np.mean([queue.share_within(chunks, p99 * part - size) for size in sizes])
        for part in (0.9, 1.2)
    )
    assert too_soon < 0.99 < late_enough


def test_the_service_of_reads_follows_from_what_is_unreadable_and_repaired() -> None:
    mix = ForegroundSection(reads_per_s=5.0, object_bytes=(1e5, 8e6), object_shares=(3.0, 1.0))
    scenario = with_mix(mix)
    calm = service_of(scenario, 0.0, 0.0)
    assert calm.degraded_read_share == 0.0 and calm.read_amplification == 1.0
    assert calm.utilisation == pytest.approx(Queue.of(client_operations(scenario, 0.0)).utilisation)
    worse = service_of(scenario, 0.01, 2e7)
    # rs-4-2: one chunk in 3 of 4 reads, all four in the others.
    assert worse.degraded_read_share == pytest.approx(0.75 * 0.01 + 0.25 * (1 - 0.99**4))
    assert worse.read_mean_s > calm.read_mean_s and worse.read_p99_s > worse.read_mean_s
    assert worse.degraded_mean_s > worse.read_mean_s
    assert worse.read_amplification == pytest.approx(1 + 0.75 * 1e5 * 0.01 * 3 / (0.75e5 + 2e6))
    assert service_of(scenario, 0.0, 1e12).read_mean_s == np.inf


@pytest.mark.parametrize(
    ("mix", "key", "text"),
    [
        ("reads_per_s = 1e4", "foreground.reads_per_s", "never keep up"),
        (
            "reads_per_s = 1.0\nobject_bytes = [1.0, 2.0]",
            "foreground.object_shares",
            "1 shares for",
        ),
        (
            "reads_per_s = 1.0\nrack_link_bytes_per_s = 1e6",
            "foreground.rack_link_bytes_per_s",
            "give a faster link",
        ),
    ],
)
def test_a_mix_that_cannot_be_is_refused(mix: str, key: str, text: str) -> None:
    toml = scenario_toml(load_scenario("tiny"))
    toml = toml[: toml.index("[foreground]")] + f"[foreground]\n{mix}\n"
    with pytest.raises(ScenarioError, match=text) as caught:
        parse_scenario(toml)
    assert [problem.key for problem in caught.value.problems] == [key]
