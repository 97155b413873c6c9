"""Checkpoints of a run: what a run that was stopped needs to go on to the same tables.

A folder holds `run.json`, which says what run it is of; of each trial that ended its tables; of
each trial under way the state at the end of one of its years. Placement is made again, which gives
the same rows. A file gets its name when it is whole, so that a stop at any moment leaves a folder
that can be resumed.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from exastore.erasure.jit import source_digest
from exastore.sim.build import load_state, save_state
from exastore.sim.errors import ResultsError
from exastore.sim.results import Table
from exastore.sim.scenario import Scenario, scenario_toml
from exastore.sim.state import State


class Checkpoints:
    """The checkpoints of one run.

    Raises:
        ResultsError: `resume`, and the folder holds checkpoints of another run.
        OSError: The folder cannot be made or written.
    """

    def __init__(
        self, folder: Path, scenario: Scenario, *, seed: int, every_years: float, resume: bool
    ) -> None:
        #: Years of a trial between two checkpoints; multiples of a quarter are kept exactly.
        self.every_years = every_years
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        made_by = {"scenario": scenario_toml(scenario), "seed": seed, "code": source_digest()}
        text = json.dumps(made_by, sort_keys=True)
        named = folder / "run.json"
        if named.exists():
            if not resume:
                self.clear()
            elif named.read_text("utf-8") != text:
                raise ResultsError(
                    f"{folder} holds checkpoints of another scenario, seed or version of the code;"
                    " give another folder, or leave out the wish to resume to start anew"
                )
        named.write_text(text, "utf-8")

    def clear(self) -> None:
        """Remove all that was kept."""
        for path in self._folder.glob("trial-*"):
            path.unlink()
        (self._folder / "run.json").unlink(missing_ok=True)

    def keep_state(self, trial: int, state: State, more: dict[str, Any]) -> None:
        """Keep where a trial is, and `more` arrays; replaces what was kept of it."""
        save_state(state, self._state_path(trial), **more)

    def state(self, trial: int) -> tuple[State, dict[str, Any]] | None:
        """Where a trial was, and the other arrays, if that was kept."""
        path = self._state_path(trial)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as columns:
            more = {name: columns[name] for name in columns.files if name not in State._fields}
        return load_state(path), more

    def keep_tables(self, trial: int, tables: dict[str, Table]) -> None:
        """Keep the tables of a trial that ended; its state is not needed any more."""
        path = self._tables_path(trial)
        partial = path.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w") as archive:
            for name, table in tables.items():
                with archive.open(name, "w") as file, pa.ipc.new_stream(file, table.schema) as to:
                    to.write_table(table)
        partial.replace(path)
        self._state_path(trial).unlink(missing_ok=True)

    def tables(self, trial: int) -> dict[str, Table] | None:
        """The tables of a trial, if it ended."""
        path = self._tables_path(trial)
        if not path.exists():
            return None
        with zipfile.ZipFile(path) as archive:
            return {
                name: pa.ipc.open_stream(archive.read(name)).read_all()
                for name in archive.namelist()
            }

    def _state_path(self, trial: int) -> Path:
        return self._folder / f"trial-{trial}.npz"

    def _tables_path(self, trial: int) -> Path:
        return self._folder / f"trial-{trial}.tables"
