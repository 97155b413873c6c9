"""Generic pages: sections of text, tables and Plotly charts in one HTML file that opens offline.

The script of Plotly is inlined once; the page asks the network for nothing. A figure is plain JSON,
`{"data": [...], "layout": {...}}`; `line_figure`, `bar_figure` and `heat_figure` build the
usual ones.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from math import floor, log10
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

#: A Plotly figure as JSON values.
Figure = dict[str, Any]

#: Colours that differ for colour-blind readers too (Okabe and Ito), in the order of use.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True, slots=True)
class Card:
    """One key number at the top of a page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ReportSection:
    """One section: a title, a sentence that says what is shown, and a figure, a table or HTML.

    Attributes:
        title: Heading.
        text: Plain text: what the figure or table shows.
        figure: Plotly figure as JSON values.
        table: Rows of cells; the first is the head.
        html: Trusted HTML of the caller.
        wide: Takes the whole width of the page, not half of it.
    """

    title: str
    text: str = ""
    figure: Figure | None = None
    table: Sequence[Sequence[str]] = field(default_factory=tuple)
    html: str = ""
    wide: bool = False


def line_figure(
    x: Sequence[float],
    lines: Mapping[str, Sequence[float] | Sequence[float | None]],
    *,
    x_title: str,
    y_title: str,
    fill: bool = False,
    log_y: bool = False,
    is_points: bool = False,
) -> Figure:
    """Lines over one x axis; titles name the unit. `fill` shades below the first.

    `is_points`: marks that no line joins. None breaks a line.
    """
    data = [
        {
            "type": "scatter",
            # A single point has no line to be seen by.
            "mode": "markers" if is_points or len(x) == 1 else "lines",
            "name": name,
            "x": [float(value) for value in x],
            "y": [None if value is None else float(value) for value in values],
            "line": {"color": COLOURS[i % len(COLOURS)], "width": 2},
            "marker": {"color": COLOURS[i % len(COLOURS)], "size": 8},
            **({"fill": "tozeroy", "fillcolor": "rgba(0,114,178,0.12)"} if fill and not i else {}),
        }
        for i, (name, values) in enumerate(lines.items())
    ]
    layout = _layout(x_title, y_title, len(data) > 1, log_y)
    layout["xaxis"]["rangemode"] = "tozero"
    _say_if_empty(layout, [value for values in lines.values() for value in values])
    return {"data": data, "layout": layout}


def bar_figure(
    x: Sequence[float] | Sequence[str],
    bars: Mapping[str, Sequence[float]],
    *,
    x_title: str,
    y_title: str,
    log_y: bool = False,
    overlay: bool = False,
) -> Figure:
    """Bars over one x axis; `overlay` draws series over each other, half transparent."""
    data = [
        {
            "type": "bar",
            "name": name,
            "x": [value if isinstance(value, str) else float(value) for value in x],
            "y": [float(value) for value in values],
            "marker": {"color": COLOURS[i % len(COLOURS)]},
            "opacity": 0.6 if overlay else 1.0,
        }
        for i, (name, values) in enumerate(bars.items())
    ]
    layout = _layout(x_title, y_title, len(data) > 1, log_y)
    every = [value for values in bars.values() for value in values]
    _say_if_empty(layout, every)
    if log_y:
        layout["yaxis"]["range"] = _log_range(every)
    if x and isinstance(x[0], str):
        layout["xaxis"] |= {"type": "category"}
    return {
        "data": data,
        "layout": {**layout, "barmode": "overlay" if overlay else "group", "bargap": 0.08},
    }


def heat_figure(
    x: Sequence[float],
    y: Sequence[float] | Sequence[str],
    cells: Sequence[Sequence[float | None]],
    *,
    x_title: str,
    y_title: str,
    z_title: str,
) -> Figure:
    """A map: one cell per y (rows, the first on top) and x; None leaves one empty.

    The scale, cividis, is even in brightness, so that it can be read without seeing red or green.
    """
    data = [
        {
            "type": "heatmap",
            "x": list(x),
            "y": [str(value) for value in y],
            "z": [list(row) for row in cells],
            "colorscale": "Cividis",
            "colorbar": {"title": {"text": z_title}, "thickness": 12, "outlinewidth": 0},
            "hoverongaps": False,
            "hovertemplate": f"{x_title} %{{x}}<br>{y_title} %{{y}}<br>{z_title} %{{z:.4g}}"
            "<extra></extra>",
            "xgap": 1,
            "ygap": 1,
        }
    ]
    layout = _layout(x_title, y_title, has_legend=False, log_y=False)
    layout["xaxis"] |= {"showgrid": False, "zeroline": False}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    del layout["yaxis"]["rangemode"]
    return {"data": data, "layout": {**layout, "hovermode": "closest"}}


def _say_if_empty(layout: Figure, values: Sequence[float | None]) -> None:
    """An empty chart says that it is meant to be empty."""
    if not any(values):
        layout["annotations"] = [
            {
                "text": "nothing of this in the run",
                "xref": "paper",
                "yref": "paper",
                "x": 0.5,
                "y": 0.5,
                "showarrow": False,
            }
        ]


def _log_range(values: Sequence[float]) -> list[float]:
    """Decades that show the smallest bar as a bar: from one below it to above the largest."""
    shown = [log10(value) for value in values if value > 0] or [0.0]
    return [floor(min(shown)) - 1.0, max(shown) + 0.2]


def _layout(x_title: str, y_title: str, has_legend: bool, log_y: bool) -> Figure:
    axis = {"gridcolor": "#e8ecf0", "zerolinecolor": "#cfd6dd", "automargin": True}
    y_axis: Figure = {**axis, "title": {"text": y_title}, "rangemode": "tozero"}
    if log_y:
        y_axis |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    return {
        "xaxis": {**axis, "title": {"text": x_title}},
        "yaxis": y_axis,
        "showlegend": has_legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 60, "r": 16, "t": 32, "b": 48},
        "height": 340,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#26323d"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "x unified",
    }


def script_json(value: object) -> Markup:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def _template() -> jinja2.Template:
    source = resources.files("exastore.sim.report").joinpath("page.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["script_json"] = script_json
    return environment.from_string(source)


def render_report(
    title: str,
    sections: Sequence[ReportSection],
    *,
    subtitle: str = "",
    cards: Sequence[Card] = (),
    footer: str = "",
) -> str:
    """The whole page.

    Args:
        title: Of the page.
        sections: In the order of reading; narrow ones stand in pairs.
        subtitle: One sentence under the title.
        cards: Key numbers at the top.
        footer: Plain text at the end.
    """
    has_figures = any(section.figure for section in sections)
    return _template().render(
        title=title,
        subtitle=subtitle,
        cards=cards,
        sections=[(section, Markup(section.html)) for section in sections],
        footer=footer,
        plotly_js=Markup(get_plotlyjs()) if has_figures else "",
    )
