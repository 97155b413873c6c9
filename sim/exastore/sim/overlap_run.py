"""Many trials of the overlap engine: on threads, with their tables and what they say.

Trials are run in blocks whose size the scenario decides, so that the tables are the same bits for
any number of workers. `docs/results.md` documents every column.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import expm1, log1p
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exastore.metadata.core.topology import Int64Array
from exastore.sim.durability import binomial_interval
from exastore.sim.errors import ResultsError
from exastore.sim.overlap import (
    DONE,
    FAILURES,
    GROUPS_LOST,
    LOSS,
    LOSSES,
    OVERLAPS,
    SHARED_GROUPS,
    TRIALS_WITH_LOSS,
    YEARS_WITH_LOSS,
)
from exastore.sim.overlap_model import (
    OverlapModel,
    OverlapOptions,
    build_missing,
    build_model,
    left_out,
    without_incidents,
)
from exastore.sim.overlap_trials import run_block
from exastore.sim.physics import build_physics
from exastore.sim.provenance import provenance
from exastore.sim.results import Provenance, Table
from exastore.sim.run import Progress
from exastore.sim.scenario import Scenario, parse_scenario
from exastore.sim.state import Records
from exastore.sim.superposed import Arrivals, Population, build_arrivals, build_population

#: Version of the tables' meaning.
DURABILITY_FORMAT = 1
#: Losses that are kept one by one; all are counted.
LOSSES_KEPT = 10_000
_BLOCK_FAILURES = 1_000_000
_BLOCK_TRIALS_MAX = 2**20
_ROOM = 512
_KEY = b"exastore"
_FILES = ("durability", "durability_losses")
#: Columns of the table `durability`, by what the engine counts.
_COUNTED = {
    "device_failures": FAILURES,
    "overlapping_failures": OVERLAPS,
    "shared_groups": SHARED_GROUPS,
    "groups_lost": GROUPS_LOST,
    "loss_events": LOSSES,
    "years_with_loss": YEARS_WITH_LOSS,
    "trials_with_loss": TRIALS_WITH_LOSS,
}


@dataclass(frozen=True, slots=True)
class RareEstimate:
    """Durability from excursions with biased failures.

    Attributes:
        excursions: How many were run; `hits` of them lost data.
        loss_per_year: P(any loss in a year), with a 95 % interval by the normal law.
        groups_lost_per_year: Expected groups lost by first losses, and its standard error.
        relative_error: Standard error of the loss rate over the rate; inf without hits.
    """

    excursions: int
    hits: int
    loss_per_year: float
    lower: float
    upper: float
    groups_lost_per_year: float
    groups_lost_error: float
    relative_error: float


@dataclass(frozen=True, slots=True)
class DurabilityResults:
    """What many trials of the overlap engine counted.

    Attributes:
        scenario: What was simulated, without what is left out.
        options: Which model.
        left_out: What the scenario has beside that, in words.
        provenance: As of any run.
        blocks: One row per block of trials.
        losses: The first losses, one by one.
        rare: An estimate by importance sampling beside them, if there is one.
    """

    scenario: Scenario
    options: OverlapOptions
    left_out: tuple[str, ...]
    provenance: Provenance
    blocks: Table
    losses: Table
    rare: RareEstimate | None = None

    def total(self, column: str) -> int:
        """Sum of a column of `blocks`."""
        return int(self.blocks[column].to_numpy().sum())

    def write(self, directory: str | Path) -> None:
        """Write one Parquet file per table, and the scenario beside them."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        about = asdict(self.provenance) | {
            "durability_format": DURABILITY_FORMAT,
            "options": asdict(self.options),
            "left_out": list(self.left_out),
            "rare": None if self.rare is None else asdict(self.rare),
        }
        text = json.dumps(about, sort_keys=True)
        for name, table in zip(_FILES, (self.blocks, self.losses), strict=True):
            partial = folder / f"{name}.parquet.partial"
            pq.write_table(table.replace_schema_metadata({_KEY: text.encode()}), partial)
            partial.replace(folder / f"{name}.parquet")
        (folder / "scenario.toml").write_text(self.provenance.scenario_toml, "utf-8")

    @classmethod
    def read(cls, directory: str | Path) -> "DurabilityResults":
        """Read what `write` wrote.

        Raises:
            ResultsError: The folder does not hold such results, or those of another format.
        """
        folder = Path(directory)
        try:
            blocks, losses = (pq.read_table(folder / f"{name}.parquet") for name in _FILES)
        except FileNotFoundError as error:
            text = f"{folder} holds no results of `sim durability`: {error.filename} is not there"
            raise ResultsError(text) from None
        except (OSError, pa.ArrowInvalid) as error:
            raise ResultsError(f"{folder} cannot be read: {error}") from None
        about: dict[str, Any] = json.loads((blocks.schema.metadata or {}).get(_KEY, b"{}"))
        version = about.pop("durability_format", None)
        if version != DURABILITY_FORMAT:
            text = f"{folder} holds results of format {version}, this program reads"
            raise ResultsError(f"{text} {DURABILITY_FORMAT}; simulate its scenario.toml again")
        options, omitted = OverlapOptions(**about.pop("options")), tuple(about.pop("left_out"))
        stored = about.pop("rare")
        rare = None if stored is None else RareEstimate(**stored)
        scenario = parse_scenario(about["scenario_toml"], source=f"scenario of {folder}")
        made = Provenance(**about)
        return cls(scenario, options, omitted, made, blocks, losses, rare)


@dataclass(frozen=True, slots=True)
class DurabilityEstimate:
    """What the trials say about one year; see `exastore.sim.durability.Durability`.

    Attributes:
        periods: Observed periods of `period_years`, all trials together.
        loss_per_year: Estimate of P(any loss in a year); 0 if none was seen.
        lower, upper: Its exact 95 % interval; one-sided if none was seen.
        trials_with_loss: Missions that lost data.
        loss_per_trial: Estimate of P(any loss in a mission), and its interval.
        groups_lost_per_year: Expected number; 0 of unlimited chunks, which have no groups.
        share_lost_per_year: Expected share of the data that is lost in a year.
    """

    period_years: float
    periods: int
    periods_with_loss: int
    loss_per_year: float
    lower: float
    upper: float
    trials_with_loss: int
    loss_per_trial: tuple[float, float, float]
    groups_lost_per_year: float
    share_lost_per_year: float


def estimate_durability(results: DurabilityResults) -> DurabilityEstimate:
    """Durability from the counts of many trials."""
    run = results.provenance
    per_trial = max(1, int(run.years + 1e-9))
    period_years = 1.0 if run.years >= 1 else run.years
    periods, hits = run.trials * per_trial, results.total("years_with_loss")

    def yearly(probability: float) -> float:
        return 1.0 if probability >= 1 else -expm1(log1p(-probability) / period_years)

    lower, upper = binomial_interval(hits, periods)
    lost_trials = results.total("trials_with_loss")
    trial_lower, trial_upper = binomial_interval(lost_trials, run.trials)
    groups = results.total("groups_lost") / (run.trials * run.years)
    return DurabilityEstimate(
        period_years=period_years,
        periods=periods,
        periods_with_loss=hits,
        loss_per_year=yearly(hits / periods),
        lower=yearly(lower),
        upper=yearly(upper),
        trials_with_loss=lost_trials,
        loss_per_trial=(lost_trials / run.trials, trial_lower, trial_upper),
        groups_lost_per_year=groups,
        share_lost_per_year=groups / group_count(results.scenario, results.options),
    )


def group_count(scenario: Scenario, options: OverlapOptions) -> int:
    """How many groups the layout has; of unlimited chunks those of the scenario."""
    if options.layout == "clustered":
        return scenario.cluster.device_count // scenario.n
    return scenario.placement.pg_count


class OverlapRun:
    """A scenario made ready for any number of blocks of trials, on any threads."""

    def __init__(
        self,
        scenario: Scenario,
        options: OverlapOptions,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self.seed = seed
        topology = scenario.topology()
        self.population: Population
        self.population, law = build_population(
            scenario, build_physics(scenario), topology, seed=seed
        )
        self.model: OverlapModel = build_model(scenario, options, law, seed=seed, progress=progress)
        self._room = local()

    def block(self, first_trial: int, trial_count: int) -> tuple[Int64Array, Records]:
        """What these trials counted, Shape (COUNTERS,), and their first losses."""
        if not hasattr(self._room, "arrivals"):
            self._room.arrivals = build_arrivals(self.population)
            self._room.missing = build_missing(self.model.rules, _ROOM)
            self._room.log = np.zeros(LOSSES_KEPT, LOSS)
        arrivals: Arrivals = self._room.arrivals
        log, no_events = self._room.log, np.zeros(0, LOSS)
        while True:
            missing = self._room.missing
            status = run_block(
                self.population,
                self.model.rules,
                self.model.layout,
                arrivals,
                missing,
                self.seed,
                first_trial,
                trial_count,
                log,
                no_events,
            )
            if status == DONE:
                break
            self._room.missing = build_missing(self.model.rules, 2 * len(missing.entries))
        is_unlimited = bool(self.model.rules["unlimited"])
        kept = int(missing.counter[LOSSES if is_unlimited else GROUPS_LOST])
        return missing.counter.copy(), log[:kept].copy()

    def failures_per_trial(self) -> float:
        """Expected number of failures, of first lives."""
        total = 0.0
        for row in self.population.cohorts:
            law = self.population.physics.laws[row["law"]]
            scale = float(law["scale_s"])
            horizon_s = float(self.population.horizon_s[0])
            if scale > 0:
                total += float(row["count"]) * (horizon_s / scale) ** float(law["shape"])
            else:
                pieces = self.population.physics.pieces
                rates = pieces["per_s"][law["first_piece"] : law["end_piece"]]
                total += float(row["count"]) * horizon_s * float(rates.max())
        return total


def simulate_durability(
    scenario: Scenario,
    *,
    trials: int,
    options: OverlapOptions | None = None,
    seed: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    monotonic_s: Callable[[], float] | None = None,
) -> DurabilityResults:
    """Run many trials of device failures alone.

    Args:
        scenario: What to simulate; incidents that lose nothing are left out, and named.
        trials: How many; each is `run.years` long and starts whole.
        options: Which model; by default the scenario's groups, the most endangered first.
        seed: Of placement and of all trials; by default the scenario's.
        workers: Threads; the tables do not depend on it.
        progress: As that of `run`, in trials.
        monotonic_s: A clock, to state how long things took.

    Raises:
        ScenarioError: The engine does not cover the scenario; lists every reason.
        ValueError: `trials` or `workers` is below 1.
    """
    if trials < 1 or workers < 1:
        raise ValueError(f"trials and workers are at least 1, not {trials} and {workers}")
    clock = monotonic_s or (lambda: 0.0)
    options = options or OverlapOptions()
    seed = scenario.run.seed if seed is None else seed
    started_s = clock()
    made = OverlapRun(scenario, options, seed=seed, progress=progress)
    placed_s = clock()
    size = int(
        min(max(_BLOCK_FAILURES / max(made.failures_per_trial(), 1e-9), 1), _BLOCK_TRIALS_MAX)
    )
    rows: list[list[int]] = []
    kept: list[Records] = []
    kept_count = 0
    for first, (counter, log) in _blocks(made, trials, size, workers):
        count = min(size, trials - first)
        rows.append([first, count, *(int(counter[at]) for at in _COUNTED.values())])
        kept.append(log[: LOSSES_KEPT - kept_count])
        kept_count += len(kept[-1])
        if progress:
            progress("simulating", float(first + count), float(trials))
    bare = without_incidents(scenario)
    return DurabilityResults(
        scenario=bare,
        options=options,
        left_out=tuple(left_out(scenario)),
        provenance=provenance(
            bare,
            seed=seed,
            trials=trials,
            placement_s=placed_s - started_s,
            trials_s=clock() - placed_s,
        ),
        blocks=pa.table(
            {
                name: np.array(values, np.int64)
                for name, values in zip(
                    ("first_trial", "trials", *_COUNTED), zip(*rows, strict=True), strict=True
                )
            }
        ),
        losses=_loss_table(np.concatenate(kept)),
    )


def _blocks(
    made: OverlapRun, trials: int, size: int, workers: int
) -> Iterator[tuple[int, tuple[Int64Array, Records]]]:
    """Blocks in their order, each as soon as it and all before end."""
    firsts = range(0, trials, size)
    if workers == 1:
        for first in firsts:
            yield first, made.block(first, min(size, trials - first))
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque[tuple[int, Future[tuple[Int64Array, Records]]]]()
        try:
            for first in firsts:
                waiting.append((first, pool.submit(made.block, first, min(size, trials - first))))
                if len(waiting) > 2 * workers:
                    number, done = waiting.popleft()
                    yield number, done.result()
            for number, done in waiting:
                yield number, done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _loss_table(log: Records) -> Table:
    return pa.table(
        {
            "trial": log["trial"].copy(),
            "time_s": log["time_s"].copy(),
            "group": log["group"].copy(),
            "missing_chunks": log["missing"].copy(),
        }
    )
