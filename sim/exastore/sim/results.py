"""Results: Arrow tables with their provenance, written to and read from a folder of Parquet files.

`docs/results.md` documents every column. The provenance is JSON in each file's schema metadata
under the key `exastore`, so that one file alone says how to reproduce it.
"""

import json
from collections.abc import Mapping
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
FORMAT_VERSION = 6
TABLES = (
    "trials",
    "timeline",
    "degraded_time",
    "redundancy",
    "balance",
    "losses",
    "incidents",
    "placement",
    "capacity",
    "fill",
    "foreground",
)
#: Rows of a table that wait in memory until they are written as one row group.
_GROUP_ROWS = 2**16


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
        incidents: How often each incident came, per trial.
        placement: One row per device, or per node of a large cluster, with its place and load.
        capacity: One row per trial, quarter and generation: devices, bytes, fill.
        foreground: One row per trial and month: how requests fare; empty without requests.
        fill: Histogram of the fill of devices, per trial, quarter and generation.
    """

    scenario: Scenario
    provenance: Provenance
    trials: Table
    timeline: Table
    degraded_time: Table
    redundancy: Table
    balance: Table
    losses: Table
    incidents: Table
    placement: Table
    capacity: Table
    fill: Table
    foreground: Table

    def write(self, directory: str | Path) -> None:
        """Write one Parquet file per table, and the scenario beside them."""
        with ResultsWriter(directory) as writer:
            writer.add({name: getattr(self, name) for name in TABLES})
            writer.finish(self.provenance)

    @classmethod
    def read(cls, directory: str | Path) -> "Results":
        """Read what `write` wrote.

        Raises:
            ResultsError: The folder does not hold results, or those of another format.
        """
        folder = Path(directory)
        provenance = _stored_provenance(folder)
        tables = {name: _opened(folder, name).read() for name in TABLES}
        scenario = parse_scenario(provenance.scenario_toml, source=f"scenario of {folder}")
        return cls(scenario=scenario, provenance=provenance, **tables)


def _opened(folder: Path, name: str) -> Any:
    path = folder / f"{name}.parquet"
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        text = f"{folder} holds no results of a simulation: {path.name} is not there"
        raise ResultsError(text) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from None


def _stored_provenance(folder: Path) -> Provenance:
    """What the first table carries, if it is of this format."""
    stored = (_opened(folder, "trials").schema_arrow.metadata or {}).get(_KEY)
    if stored is None:
        raise ResultsError(f"{folder / 'trials.parquet'} was not written by exastore")
    found = json.loads(stored)
    if found.get("format_version") != FORMAT_VERSION:
        version = found.get("format_version")
        raise ResultsError(
            f"{folder} holds results of format {version}, this program reads {FORMAT_VERSION};"
            " simulate its scenario.toml again"
        )
    return Provenance(**found)


class ResultsWriter:
    """Writes tables row by row as trials end; holds at most `_GROUP_ROWS` rows of each.

    The files get their names when all is written: a run that is stopped leaves those of an older
    run as they were. Use it as a context, which removes what was not finished.

    Raises:
        OSError: The folder cannot be made or written.
    """

    def __init__(self, directory: str | Path) -> None:
        self._folder = Path(directory)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writers: dict[str, Any] = {}
        #: Rows that are not yet written; of one trial after the other.
        self._pending: dict[str, list[Table]] = {name: [] for name in TABLES}
        probe = self._partial("scenario.toml")
        probe.write_bytes(b"")  # a folder that takes no files is told before the work, not after

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()
        for name in (*(f"{name}.parquet" for name in TABLES), "scenario.toml"):
            self._partial(name).unlink(missing_ok=True)

    def add(self, tables: Mapping[str, Table]) -> None:
        """Append rows to some tables."""
        for name, table in tables.items():
            pending = self._pending[name]
            pending.append(table)
            if sum(map(len, pending)) >= _GROUP_ROWS:
                self._flush(name)

    def finish(self, provenance: Provenance) -> None:
        """Write what is left, and the provenance, and give the files their names."""
        found = {item.name: getattr(provenance, item.name) for item in fields(Provenance)}
        text = json.dumps(found, sort_keys=True)
        for name in TABLES:
            self._flush(name)
            self._writers[name].add_key_value_metadata({_KEY.decode(): text})
            self._writers[name].close()
        self._partial("scenario.toml").write_text(provenance.scenario_toml, "utf-8")
        for name in (*(f"{name}.parquet" for name in TABLES), "scenario.toml"):
            self._partial(name).replace(self._folder / name)

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name}.partial"

    def _flush(self, name: str) -> None:
        pending = self._pending[name]
        if not pending:
            return
        table = pa.concat_tables(pending).replace_schema_metadata(None)
        if name not in self._writers:
            path = self._partial(f"{name}.parquet")
            # Without Arrow's own copy of the schema, readers take the metadata of the file, which
            # is known only at the end, for that of the schema.
            self._writers[name] = pq.ParquetWriter(path, table.schema, store_schema=False)
        self._writers[name].write_table(table)
        pending.clear()
