"""Failures that are played back from a table in the column layout of Backblaze's Drive Stats.

One row per drive and day, with at least the columns `date`, `serial_number` and `failure` (0 or 1);
CSV or Parquet, by the name's ending. The first day is time zero. The n-th serial number, in the
order of first appearance, is device n of the cluster; drives beyond the cluster's devices are left
out. A failure happens at the end of the drive's last day, as there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.scenario import Scenario

_COLUMNS = ["date", "serial_number", "failure"]
_DAY_S = 86_400.0


def trace_events(scenario: Scenario) -> list[tuple[float, int]]:
    """(seconds, device) of each failure, by time, then device.

    Raises:
        ScenarioError: The file cannot be read or lacks a column; names both.
    """
    path = Path(scenario.device.trace)
    table = _read(path, scenario.name)
    compute: Any = pc
    days = compute.cast(compute.cast(table["date"], pa.date32()), pa.int32()).to_numpy()
    serials = table["serial_number"].combine_chunks().dictionary_encode()
    device = serials.indices.to_numpy()
    failed = table["failure"].to_numpy() == 1
    if not len(days):
        return []
    keep = failed & (device < scenario.cluster.device_count)
    times = (days[keep] - days.min() + 1) * _DAY_S
    order = np.lexsort((device[keep], times))
    return [(float(times[i]), int(device[keep][i])) for i in order]


def _read(path: Path, source: str) -> Any:
    def fail(text: str) -> ScenarioError:
        return ScenarioError(source, [Problem("device.trace", f"{path} {text}")])

    try:
        if path.suffix == ".parquet":
            return pq.read_table(path, columns=_COLUMNS)
        options = csv.ConvertOptions(include_columns=_COLUMNS)
        return csv.read_csv(path, convert_options=options)
    except FileNotFoundError:
        raise fail("is not there; give the path of a CSV or Parquet file") from None
    except (OSError, KeyError, pa.ArrowException) as error:
        columns = ", ".join(_COLUMNS)
        raise fail(f"cannot be played back: {error}; it needs the columns {columns}") from None
