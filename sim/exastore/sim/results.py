"""Results: Arrow tables with their provenance, written to and read from a folder of Parquet files.

`docs/results.md` documents every column. The provenance is JSON in each file's schema metadata
under the key `exastore`, so that one file alone says how to reproduce it.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exastore.sim.errors import ResultsError
from exastore.sim.scenario import Scenario, parse_scenario

#: Arrow ships no types.
Table = Any

_KEY = b"exastore"
#: Version of the tables' meaning; grows when a column changes or goes.
FORMAT_VERSION = 1
TABLES = ("trials", "timeline", "degraded_time", "redundancy", "balance", "losses")


@dataclass(frozen=True, slots=True)
class Provenance:
    """What it takes to get the same bits again, and what it took this time.

    Attributes:
        scenario_toml: The scenario with all defaults written out.
        scenario_sha256: Hash of `scenario_toml`.
        seed: Seed of the run.
        trials: Number of trials.
        years: Length of each.
        code_version: Git commit of the sources, else the version of the package.
        python, numpy, numba: Versions.
        machine: Processor, cores and system.
        placement_s, trials_s: Seconds that placement and all trials took; 0 if no clock was given.
        peak_memory_bytes: Most memory the process had held by the end of the run.
        format_version: Version of the tables.
    """

    scenario_toml: str
    scenario_sha256: str
    seed: int
    trials: int
    years: float
    code_version: str
    python: str
    numpy: str
    numba: str
    machine: str
    placement_s: float
    trials_s: float
    peak_memory_bytes: int
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Results:
    """The tables of one run; see `docs/results.md`.

    Attributes:
        trials: One row per trial: totals, and balance at its end.
        timeline: One row per trial and month.
        degraded_time: Histogram: how long PGs were degraded, per trial.
        redundancy: PG-hours by number of missing chunks, per trial.
        balance: Histogram of slots per device, at the start (trial -1) and the end of each trial.
        losses: The first losses of each trial, one by one.
    """

    scenario: Scenario
    provenance: Provenance
    trials: Table
    timeline: Table
    degraded_time: Table
    redundancy: Table
    balance: Table
    losses: Table

    def write(self, directory: str | Path) -> None:
        """Write one Parquet file per table, and the scenario beside them."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        provenance = {item.name: getattr(self.provenance, item.name) for item in fields(Provenance)}
        metadata = {_KEY: json.dumps(provenance, sort_keys=True).encode()}
        for name in TABLES:
            table = getattr(self, name).replace_schema_metadata(metadata)
            pq.write_table(table, folder / f"{name}.parquet")
        (folder / "scenario.toml").write_text(self.provenance.scenario_toml, "utf-8")

    @classmethod
    def read(cls, directory: str | Path) -> "Results":
        """Read what `write` wrote.

        Raises:
            ResultsError: The folder does not hold results, or those of another format.
        """
        folder = Path(directory)
        tables: dict[str, Table] = {}
        for name in TABLES:
            path = folder / f"{name}.parquet"
            try:
                tables[name] = pq.read_table(path)
            except FileNotFoundError:
                text = f"{folder} holds no results of a simulation: {path.name} is not there"
                raise ResultsError(text) from None
            except (OSError, pa.ArrowInvalid) as error:
                raise ResultsError(f"{path} cannot be read: {error}") from None
        stored = (tables["trials"].schema.metadata or {}).get(_KEY)
        if stored is None:
            raise ResultsError(f"{folder / 'trials.parquet'} was not written by exastore")
        found = json.loads(stored)
        if found.get("format_version") != FORMAT_VERSION:
            version = found.get("format_version")
            raise ResultsError(
                f"{folder} holds results of format {version}, this program reads {FORMAT_VERSION}"
            )
        provenance = Provenance(**found)
        scenario = parse_scenario(provenance.scenario_toml, source=f"scenario of {folder}")
        return cls(scenario=scenario, provenance=provenance, **tables)
