"""Charts of a recovery, from the samples taken while it ran."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from exastore.deploy.demo.measure import Sample

#: Readable on white, and by people who do not see red and green apart.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"

Events = Sequence[tuple[float, str]]


def redundancy_chart(samples: Sequence[Sample], events: Events) -> Any:
    """What could not be read, from the kill to full redundancy."""
    times = [sample.time_s for sample in samples]
    figure = _figure("Placement-group slots that cannot be read", "slots", events)
    figure.add_trace(
        go.Scatter(
            x=times,
            y=[sample.missing_slot_count for sample in samples],
            name="missing slots",
            line={"color": ORANGE, "shape": "hv"},
            fill="tozeroy",
        )
    )
    return figure


def exposure_chart(samples: Sequence[Sample], events: Events) -> Any:
    """How near any placement group came to losing data, and how many devices served."""
    times = [sample.time_s for sample in samples]
    figure = _figure("Worst placement group, and devices that serve", "count", events)
    figure.add_trace(
        go.Scatter(
            x=times,
            y=[sample.worst_missing_count for sample in samples],
            name="most missing slots of one group",
            line={"color": ORANGE, "shape": "hv"},
        )
    )
    figure.add_trace(
        go.Scatter(
            x=times,
            y=[sample.up_device_count for sample in samples],
            name="devices up",
            line={"color": BLUE, "shape": "hv"},
        )
    )
    return figure


def rebuilt_chart(samples: Sequence[Sample], events: Events) -> Any:
    """Bytes rebuilt, against those that the repair set out to rebuild."""
    times = [sample.time_s for sample in samples]
    figure = _figure("Chunk bytes rebuilt", "MiB", events)
    for name, values, color, dash in (
        ("rebuilt", [sample.rebuilt_chunk_bytes for sample in samples], BLUE, "solid"),
        ("to be rebuilt", [sample.total_chunk_bytes for sample in samples], GREY, "dot"),
    ):
        figure.add_trace(
            go.Scatter(
                x=times,
                y=[value / 2**20 for value in values],
                name=name,
                line={"color": color, "dash": dash},
            )
        )
    return figure


def rate_chart(samples: Sequence[Sample], events: Events) -> Any:
    """Bytes rebuilt per second, sample by sample."""
    times: list[float] = []
    rates: list[float] = []
    for before, after in pairwise(samples):
        elapsed_s = after.time_s - before.time_s
        change = max(0, after.rebuilt_chunk_bytes - before.rebuilt_chunk_bytes)
        times.append(after.time_s)
        rates.append(change / elapsed_s / 1e6 if elapsed_s > 0 else 0.0)
    figure = _figure("Rebuild rate, all devices together", "MB/s", events)
    figure.add_trace(
        go.Scatter(x=times, y=rates, name="rebuild rate", line={"color": BLUE, "shape": "hv"})
    )
    return figure


def _figure(title: str, y_title: str, events: Events) -> Any:
    figure = go.Figure()
    figure.update_layout(
        title=title,
        xaxis_title="seconds after the kill",
        yaxis_title=y_title,
        yaxis_rangemode="tozero",
        showlegend=True,
        template="plotly_white",
    )
    for time_s, text in events:
        figure.add_vline(
            x=time_s,
            line={"color": GREY, "dash": "dash", "width": 1},
            annotation={"text": text, "textangle": -90, "font": {"size": 10}},
        )
    return figure
