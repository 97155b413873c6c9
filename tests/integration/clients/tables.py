"""A table with columns of several kinds, the same for the same seed."""

from typing import Any

import numpy as np
import pyarrow as pa


def some_table(row_count: int, seed: int = 0) -> Any:
    """Ids that count up, readings without pattern, and a station of one of fifty."""
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "id": np.arange(row_count, dtype=np.int64),
            "reading": random.standard_normal(row_count),
            "station": [f"station-{number:02d}" for number in random.integers(0, 50, row_count)],
        }
    )
