"""Charts of a recovery, from the samples taken while it ran."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from exastore.deploy.demo.measure import Sample
from exastore.sim.report import line_figure

#: A Plotly figure as JSON values.
Figure = dict[str, Any]
Events = Sequence[tuple[float, str]]

_GREY = "#66707a"


def redundancy_chart(samples: Sequence[Sample], events: Events) -> Figure:
    """What could not be read, from the kill to full redundancy."""
    values = {"missing slots": [float(sample.missing_slot_count) for sample in samples]}
    return _chart(_times(samples), values, "slots that cannot be read", events, fill=True)


def exposure_chart(samples: Sequence[Sample], events: Events) -> Figure:
    """How near any placement group came to losing data, and how many devices served."""
    values = {
        "devices that serve": [float(sample.up_device_count) for sample in samples],
        "most missing slots of one group": [
            float(sample.worst_missing_count) for sample in samples
        ],
    }
    return _chart(_times(samples), values, "count", events)


def rebuilt_chart(samples: Sequence[Sample], events: Events) -> Figure:
    """Bytes rebuilt, against those that the repair set out to rebuild."""
    values = {
        "rebuilt": [sample.rebuilt_chunk_bytes / 2**20 for sample in samples],
        "to be rebuilt": [sample.total_chunk_bytes / 2**20 for sample in samples],
    }
    return _chart(_times(samples), values, "chunk bytes, MiB", events)


def rate_chart(samples: Sequence[Sample], events: Events) -> Figure:
    """Bytes rebuilt per second, sample by sample."""
    times: list[float] = []
    rates: list[float] = []
    for before, after in pairwise(samples):
        elapsed_s = after.time_s - before.time_s
        change = max(0, after.rebuilt_chunk_bytes - before.rebuilt_chunk_bytes)
        times.append(after.time_s)
        rates.append(change / elapsed_s / 1e6 if elapsed_s > 0 else 0.0)
    return _chart(times, {"rebuild rate": rates}, "all devices together, MB/s", events, fill=True)


def _times(samples: Sequence[Sample]) -> list[float]:
    return [sample.time_s for sample in samples]


def _chart(
    times: Sequence[float],
    lines: Mapping[str, Sequence[float]],
    y_title: str,
    events: Events,
    *,
    fill: bool = False,
) -> Figure:
    """Steps over the time since the kill, with a vertical line per event."""
    figure = line_figure(times, lines, x_title="seconds after the kill", y_title=y_title, fill=fill)
    for trace in figure["data"]:
        trace["line"]["shape"] = "hv"
    figure["layout"]["shapes"] = [
        {
            "type": "line",
            "x0": time_s,
            "x1": time_s,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": _GREY, "width": 1, "dash": "dash"},
        }
        for time_s, _ in events
    ]
    figure["layout"]["annotations"] = [
        {
            "x": time_s,
            "y": 0.98,
            "yref": "paper",
            "text": text,
            "textangle": -90,
            "xanchor": "right",
            "yanchor": "top",
            "showarrow": False,
            "font": {"size": 10, "color": _GREY},
        }
        for time_s, text in events
    ]
    return figure
