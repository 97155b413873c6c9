"""Reports: self-contained HTML pages with charts. `page` knows no simulator, `sections` does."""

from exastore.sim.report.compare import comparison_report, comparison_rows
from exastore.sim.report.page import (
    Card,
    ReportSection,
    bar_figure,
    heat_figure,
    line_figure,
    render_report,
)
from exastore.sim.report.simulation import report_cards, report_sections, simulation_report

__all__ = [
    "Card",
    "ReportSection",
    "bar_figure",
    "comparison_report",
    "comparison_rows",
    "heat_figure",
    "line_figure",
    "render_report",
    "report_cards",
    "report_sections",
    "simulation_report",
]
