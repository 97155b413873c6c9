"""How many cluster-years the overlap engine counts in a second, on one core.

The setting of mlec-sim, 57,600 disks of 10+2 for a year, is marked large. That simulator does about
7 of these years a second on such a core.
"""

import zlib
from typing import Any

import pytest

from exastore.sim import OverlapOptions, load_scenario
from exastore.sim.overlap import FAILURES
from exastore.sim.overlap_run import OverlapRun


@pytest.mark.parametrize("layout", ["placed", "unlimited"])
@pytest.mark.parametrize(
    ("preset", "trials"),
    [
        pytest.param("tiny", 20_000, id="devices144-rs-4-2"),
        pytest.param("mlec", 2_000, id="devices57600-rs-10-2", marks=pytest.mark.large),
    ],
)
def test_count_losses(benchmark: Any, preset: str, trials: int, layout: str) -> None:
    scenario = load_scenario(preset)
    made = OverlapRun(scenario, OverlapOptions(layout), seed=1)  # type: ignore[arg-type]
    made.block(0, 1)
    counter, _ = benchmark(made.block, 0, trials)
    if benchmark.stats is not None:
        median_s = benchmark.stats.stats.median
        benchmark.extra_info["years_per_s"] = round(trials * scenario.run.years / median_s)
        benchmark.extra_info["ns_per_failure"] = round(1e9 * median_s / counter[FAILURES])
    benchmark.extra_info["crc32"] = zlib.crc32(counter.tobytes())
