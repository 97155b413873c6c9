"""Failures that are played back from tables in the column layout of Backblaze's Drive Stats.

One row per drive and day, with at least the columns `date`, `serial_number` and `failure` (0 or 1),
in any order of rows; CSV or Parquet, by the name's ending, or a folder of such files, as one file a
day is published. The first day is time zero. The n-th serial number, in the order of first
appearance by day, is device n of the cluster; drives beyond the cluster's devices are left out. A
failure happens at the end of the drive's last day, as there. Days on which a drive has no row are
nothing special. Other columns, `model` among them, are not looked at.
"""

from pathlib import Path
from typing import Any, Never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from exastore.metadata.core.topology import Int64Array
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.scenario import Scenario
from exastore.sim.units import YEAR_S

_COLUMNS = ["date", "serial_number", "failure"]
_DAY_S = 86_400.0


def trace_events(scenario: Scenario) -> list[tuple[float, int]]:
    """(seconds, device) of each failure, by time, then device.

    Raises:
        ScenarioError: What is there cannot be played back; names file or drive, and the remedy.
    """
    path = Path(scenario.device.trace)
    table = _read(path, scenario.name)
    if not len(table):
        _refuse(scenario, f"{path} has no rows; give one row per drive and day")
    days, failed = _days(scenario, table), _failures(scenario, table)
    # Rows in any order: drives are numbered by the day that they appear, then by their row.
    order = np.argsort(days, kind="stable")
    encoded = table["serial_number"].take(pa.array(order)).combine_chunks().dictionary_encode()
    device = np.empty(len(order), np.int64)
    device[order] = encoded.indices.to_numpy()
    serials = encoded.dictionary
    _check_rows(scenario, days, device, failed, serials)
    if len(serials) < scenario.tree.device_count:
        _refuse(
            scenario,
            f"{path} has {len(serials):,} drives for {scenario.tree.device_count:,} devices, of"
            " which the others would never fail; give a smaller cluster or a larger trace",
        )
    covered = (int(days.max()) - int(days.min()) + 1) * _DAY_S
    if scenario.run.years * YEAR_S > covered:
        _refuse(
            scenario,
            f"{path} covers {covered / _DAY_S:,.0f} days, after which nothing would fail, but"
            f" run.years is {scenario.run.years:g}; set run.years to at most"
            f" {np.floor(covered / YEAR_S * 1e4) / 1e4:g}",
        )
    keep = failed & (device < scenario.tree.device_count)
    times = (days[keep] - days.min() + 1) * _DAY_S
    by_time = np.lexsort((device[keep], times))
    return [(float(times[i]), int(device[keep][i])) for i in by_time]


def _refuse(scenario: Scenario, text: str) -> Never:
    raise ScenarioError(scenario.name, [Problem("device.trace", text)])


def _days(scenario: Scenario, table: Any) -> Int64Array:
    """Day of each row, as a number."""
    compute: Any = pc
    column = table["date"]
    _refuse_empty(scenario, column, "date")
    try:
        days = compute.cast(compute.cast(column, pa.date32()), pa.int32())
    except pa.ArrowException:
        given = column[0].as_py()
        text = f"has dates such as {given!r}; write them as 2026-01-31"
        _refuse(scenario, f"{scenario.device.trace} {text}")
    found: Int64Array = days.to_numpy().astype(np.int64)
    return found


def _failures(scenario: Scenario, table: Any) -> Any:
    """Whether the drive of each row failed on that day."""
    compute: Any = pc
    column = table["failure"]
    _refuse_empty(scenario, column, "failure")
    _refuse_empty(scenario, table["serial_number"], "serial_number")
    try:
        values = compute.cast(column, pa.int64()).to_numpy()
        wrong = np.flatnonzero((values != 0) & (values != 1))
    except pa.ArrowException:
        values, wrong = np.zeros(len(column)), np.array([0])
    if len(wrong):
        given = column[int(wrong[0])].as_py()
        text = f"has {given!r} in column failure, row {int(wrong[0]) + 1:,}; it must be 0 or 1"
        _refuse(scenario, f"{scenario.device.trace} {text}")
    return values == 1


def _refuse_empty(scenario: Scenario, column: Any, name: str) -> None:
    """Refuses a column in which a value is missing."""
    compute: Any = pc
    if column.null_count:
        row = int(np.flatnonzero(compute.is_null(column).to_numpy())[0]) + 1
        text = f"has no {name} in row {row:,}; fill it in or leave the row out"
        _refuse(scenario, f"{scenario.device.trace} {text}")


def _check_rows(
    scenario: Scenario, days: Int64Array, device: Int64Array, failed: Any, serials: Any
) -> None:
    """Refuses two rows of one drive and day, and drives that fail twice."""
    by_drive = np.lexsort((days, device))
    at, when = device[by_drive], days[by_drive]
    twice = np.flatnonzero((at[1:] == at[:-1]) & (when[1:] == when[:-1]))
    if len(twice):
        first = int(twice[0])
        day = np.datetime64(int(when[first]), "D")
        text = f"has {len(twice):,} rows twice, the first of drive {serials[int(at[first])]} on"
        _refuse(scenario, f"{scenario.device.trace} {text} {day}; leave one row per drive and day")
    counts = np.bincount(device[failed], minlength=len(serials))
    if counts.max(initial=0) > 1:
        drive = serials[int(np.argmax(counts))]
        text = f"lets drive {drive} fail {counts.max()} times; a replaced drive has a serial number"
        _refuse(scenario, f"{scenario.device.trace} {text} of its own: keep its last failure only")


def _read(path: Path, source: str) -> Any:
    """The columns of one file, or of all files of a folder by their names."""

    def fail(text: str) -> ScenarioError:
        return ScenarioError(source, [Problem("device.trace", text)])

    files = [path]
    if path.is_dir():
        files = sorted(its for its in path.iterdir() if its.suffix in {".csv", ".parquet"})
        if not files:
            raise fail(f"{path} has no .csv and no .parquet file; give a folder that has")
    tables: list[Any] = []
    for file in files:
        try:
            tables.append(_columns(file))
        except FileNotFoundError:
            text = f"{file} is not there; give the path of a CSV or Parquet file"
            raise fail(text) from None
        except (OSError, KeyError, pa.ArrowException) as error:
            columns = ", ".join(_COLUMNS)
            text = f"{file} cannot be played back: {error}; it needs the columns {columns}"
            raise fail(text) from None
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise fail(f"files of {path} do not fit together: {error}; write all alike") from None


def _columns(file: Path) -> Any:
    """The columns that are needed; serial numbers are text, also if they look like numbers."""
    compute: Any = pc
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise KeyError(f"column {missing[0]} is not among {', '.join(table.column_names)}")
        table = table.select(_COLUMNS)
        text = compute.cast(table["serial_number"], pa.string())
        return table.set_column(1, "serial_number", text)
    options = csv.ConvertOptions(
        include_columns=_COLUMNS,
        column_types={"serial_number": pa.string()},
        strings_can_be_null=True,
        null_values=[""],
    )
    return csv.read_csv(file, convert_options=options)
