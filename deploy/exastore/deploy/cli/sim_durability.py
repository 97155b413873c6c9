"""`exastore sim durability`: millions of trials of device failures alone."""

import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exastore.deploy.cli.options import JsonOption
from exastore.deploy.cli.output import out, print_json
from exastore.deploy.cli.sim import ScenarioArgument, SeedOption, sim_errors, sim_progress
from exastore.deploy.clock import SystemClock
from exastore.deploy.files import write_atomically


class LayoutChoice(StrEnum):
    """As `exastore.sim.OverlapOptions` has them."""

    PLACED = "placed"
    CLUSTERED = "clustered"
    UNLIMITED = "unlimited"


class ClockChoice(StrEnum):
    """As `exastore.sim.OverlapOptions` has them."""

    PRIORITY = "priority"
    DEVICE = "device"
    GROUP = "group"


def durability_command(
    scenario: ScenarioArgument,
    trials: Annotated[int, typer.Option(min=1, help="Trials.")] = 100_000,
    directory: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the tables.", show_default="not written"),
    ] = None,
    seed: SeedOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads.", show_default="one per core")
    ] = None,
    layout: Annotated[
        LayoutChoice,
        typer.Option(
            help="placed: the scenario's groups; clustered: disjoint groups of devices; "
            "unlimited: unlimited chunks, no groups."
        ),
    ] = LayoutChoice.PLACED,
    clock: Annotated[
        ClockChoice,
        typer.Option(
            help="priority: most endangered first; device: a fixed time after the "
            "failure; group: each failure in a group starts anew."
        ),
    ] = ClockChoice.PRIORITY,
    rare: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also estimate losses too rare for trials, by so many excursions of importance "
            "sampling.",
            show_default="none",
        ),
    ] = 0,
    json_output: JsonOption = False,
) -> None:
    """Count how often device failures lose data, in thousands of years per second.

    The same seed gives the same tables, whatever the workers.
    """
    from exastore.sim import (
        OverlapOptions,
        estimate_rare_loss,
        load_scenario,
        simulate_durability,
    )
    from exastore.sim.overlap_summary import durability_figures, durability_summary
    from exastore.sim.report.durability import durability_report

    with sim_errors(), sim_progress() as progress:
        loaded, options = load_scenario(scenario), OverlapOptions(layout.value, clock.value)
        found = None
        if rare > 0:
            found = estimate_rare_loss(
                loaded, excursions=rare, options=options, seed=seed, progress=progress
            )
        results = simulate_durability(
            loaded,
            trials=trials,
            options=options,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
            monotonic_s=SystemClock().monotonic_s,
        )
        results = replace(results, rare=found)
        if directory is not None:
            results.write(directory)
            write_atomically(directory / "report.html", durability_report(results))
    if json_output:
        print_json(durability_figures(results))
        return
    table = Table(show_header=False)
    for label, value, text in durability_summary(results):
        table.add_row(label, value, text)
    out.print(table)
    if directory is not None:
        page = directory / "report.html"
        out.print(f"results are in {directory}, its page is {page}", soft_wrap=True)
