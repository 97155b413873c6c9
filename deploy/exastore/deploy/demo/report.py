"""The demo's page: the recovery of the real cluster, then the simulated decade."""

from html import escape
from pathlib import Path

from exastore.deploy.cli.output import binary_size, duration
from exastore.deploy.demo.charts import (
    exposure_chart,
    rate_chart,
    rebuilt_chart,
    redundancy_chart,
)
from exastore.deploy.demo.decade import Decade
from exastore.deploy.demo.steps import Outcome
from exastore.deploy.files import write_atomically
from exastore.deploy.version import version
from exastore.sim.report import Card, ReportSection, render_report, report_cards, report_sections


def write_report(path: Path, outcome: Outcome, decade: Decade) -> None:
    """Step 6: one self-contained page."""
    html = render_report(
        "exastore demo",
        [*recovery_sections(outcome), *decade_sections(decade)],
        subtitle="A real cluster on one machine loses two nodes and heals; then ten years of an "
        "exabyte, simulated with the same code.",
        cards=[*recovery_cards(outcome), *report_cards(decade.results)],
        footer=f"Made by exastore {version()} demo. Every figure is in summary.json, the "
        "simulation's tables are in sim.",
    )
    write_atomically(path, html)


def recovery_cards(outcome: Outcome) -> list[Card]:
    """Key numbers of the real cluster."""
    repair, verified = outcome.repair, outcome.verified
    assert repair is not None and verified is not None, "the report follows the story"
    objects = len(outcome.stored) + len(outcome.late_objects)
    return [
        Card("objects stored and verified", f"{objects:,}", "every SHA-256 as stored"),
        Card("nodes killed", "2", f"of {outcome.node_count}, {outcome.code}, with SIGKILL"),
        Card("fully redundant after", duration(outcome.redundant_after_s), "counted from the kill"),
        Card(
            "rebuilt",
            binary_size(repair.rebuilt_chunk_bytes),
            f"{repair.device_bytes_per_s / 1e6:.1f} MB/s per device",
        ),
        Card("chunks verified", f"{verified.chunk_count:,}", "all healthy"),
    ]


def recovery_sections(outcome: Outcome) -> list[ReportSection]:
    """What happened to the real cluster."""
    samples, events = outcome.samples, outcome.events
    return [
        ReportSection(
            "The real cluster",
            f"{outcome.node_count} storage nodes, a metadata server and an S3 gateway, each a "
            f"process of its own; {outcome.code}; a silent node is given up after "
            f"{outcome.out_after_s:g} s. Two nodes were killed at second 0 of the charts below.",
            table=_transfer_table(outcome),
            wide=True,
        ),
        ReportSection(
            "Lost and found again",
            "Slots of placement groups that cannot be read: lost at the kill, rebuilt on the "
            "nodes that are left.",
            figure=redundancy_chart(samples, events),
        ),
        ReportSection(
            "How near it came",
            f"Devices that serve, and the most slots that any one group misses; {outcome.code} "
            "bears two.",
            figure=exposure_chart(samples, events),
        ),
        ReportSection(
            "Rebuilding",
            "Bytes of chunks rebuilt, read back and checked, against those known to be rebuilt.",
            figure=rebuilt_chart(samples, events),
        ),
        ReportSection(
            "Rebuild rate",
            "All devices together. They share one disk and the processors of one machine.",
            figure=rate_chart(samples, events),
        ),
    ]


def _transfer_table(outcome: Outcome) -> list[list[str]]:
    rows = [["what", "objects", "bytes", "time", "MB/s", "objects/s"]]
    for label, transfer in (
        ("stored through S3 with boto3", outcome.write),
        ("read back with two nodes dead", outcome.degraded_read),
        ("read back after the repair", outcome.final_read),
    ):
        assert transfer is not None, "the report follows the story"
        rows.append(
            [
                label,
                f"{transfer.object_count:,}",
                binary_size(transfer.size_bytes),
                duration(transfer.elapsed_s),
                f"{transfer.bytes_per_s / 1e6:.1f}",
                f"{transfer.objects_per_s:.0f}",
            ]
        )
    return rows


def decade_sections(decade: Decade) -> list[ReportSection]:
    """What the simulation has in common with the cluster above, then its own sections."""
    scenario = decade.results.scenario
    policy = ReportSection(
        f"Ten years of {scenario.name}: the same policy, simulated",
        scenario.description,
        html="<ul>" + "".join(f"<li>{escape(line)}</li>" for line in decade.policy) + "</ul>",
        wide=True,
    )
    return [policy, *report_sections(decade.results)]
