"""The demo's report opens in a browser, offline, with every chart drawn and no script error."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, sync_playwright
from tests.support.programs import program

from exastore.deploy.demo.decade import Decade, policy_of
from exastore.deploy.demo.measure import Sample, measure_repair
from exastore.deploy.demo.report import decade_sections, recovery_sections, write_report
from exastore.deploy.demo.s3 import StoredObject
from exastore.deploy.demo.steps import Outcome, Transfer
from exastore.gateway.verifier import VerifyReport
from exastore.sim import durability, load_scenario, run, summarize

pytestmark = pytest.mark.integration

#: Chromium's own housekeeping must not look like the page's.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@pytest.fixture
def browser() -> Iterator[Browser]:
    executable = program("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=[*ARGUMENTS])
        yield launched
        launched.close()


def sample(time_s: float, missing: int, rebuilt: int) -> Sample:
    return Sample(
        time_s=time_s,
        epoch=1,
        up_device_count=6,
        missing_slot_count=missing,
        worst_missing_count=min(2, missing),
        rebuilt_chunk_bytes=rebuilt,
        rebuilt_chunk_count=rebuilt // 1_000,
        read_bytes=4 * rebuilt,
        total_chunk_bytes=50_000,
        bytes_per_s=10_000.0,
        eta_s=None,
        repair_active=0 < rebuilt < 50_000,
    )


def told_outcome() -> Outcome:
    """The outcome of a recovery, as a demo would have sampled it."""
    samples = [sample(0.0, 0, 0), sample(1.0, 96, 0)]
    samples += [sample(float(s), 96 - 19 * (s - 1), 10_000 * (s - 1)) for s in range(2, 6)]
    samples += [sample(6.0, 0, 50_000)]
    transfer = Transfer(object_count=100, size_bytes=10**8, elapsed_s=4.0)
    return Outcome(
        out_after_s=12.0,
        stored=[StoredObject("<a&b>", 10, "0" * 64)],
        write=transfer,
        degraded_read=transfer,
        final_read=transfer,
        samples=samples,
        events=[(0.0, "2 nodes killed"), (6.0, "fully redundant")],
        repair=measure_repair(samples, 6),
        verified=VerifyReport(chunk_count=600, healthy_chunk_count=600),
        redundant_after_s=6.0,
    )


def simulated(outcome: Outcome) -> Decade:
    results = run(load_scenario("tiny"), trials=2, seed=1)
    return Decade(
        results=results,
        durability=durability(results),
        summary=summarize(results),
        policy=policy_of(results, outcome),
        elapsed_s=1.0,
    )


def test_every_chart_is_drawn_offline_without_script_errors(
    browser: Browser, tmp_path: Path
) -> None:
    outcome = told_outcome()
    decade = simulated(outcome)
    report = tmp_path / "report.html"
    write_report(report, outcome, decade)
    sections = [*recovery_sections(outcome), *decade_sections(decade)]
    figure_count = sum(section.figure is not None for section in sections)
    assert figure_count >= 8

    errors: list[str] = []
    requested: list[str] = []

    def refuse(route: Route) -> None:
        url = route.request.url
        if url == report.as_uri():
            route.continue_()
        else:
            requested.append(url)
            route.abort()

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("**/*", refuse)
    page.goto(report.as_uri())
    page.wait_for_function(
        "count => document.querySelectorAll('[data-ready=true]').length >= count",
        arg=figure_count,
    )
    assert page.locator("svg.main-svg").count() >= figure_count
    assert page.locator(".figure:has(svg.main-svg)").count() == figure_count
    # Lines, bars and maps are there, not axes alone.
    for index in range(figure_count):
        figure = page.locator(".figure").nth(index)
        drawn = figure.locator(".trace, .heatmaplayer image").count()
        assert drawn >= 1, figure.get_attribute("aria-label")
    assert page.locator("h2").count() == len(sections)
    assert requested == []
    assert errors == []
