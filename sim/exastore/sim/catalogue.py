"""The scenarios that come with exastore, as rows; `docs/simulator.md` has them as a table."""

from exastore.sim.fleet import present_devices
from exastore.sim.scenario import Scenario, load_scenario, preset_names
from exastore.sim.summary import user_text


def preset_rows() -> list[tuple[str, ...]]:
    """A row per preset, after a head: what it is, how large, and where it is from."""
    head = ("preset", "devices", "code", "user data", "simulated", "what it is", "published in")
    return [head, *(_row(name, load_scenario(name)) for name in preset_names())]


def preset_markdown() -> str:
    """The rows as a table in Markdown."""
    head, *rows = preset_rows()
    lines = [head, ("---",) * len(head), *((f"`{row[0]}`", *row[1:]) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, scenario: Scenario) -> tuple[str, ...]:
    years, trials = scenario.run.years, scenario.run.trials
    return (
        name,
        f"{present_devices(scenario, 0.0):,}",
        scenario.code,
        user_text(scenario.data.user_bytes),
        f"{trials} x {years:.3g} years" if trials > 1 else f"{years:.3g} years",
        scenario.description,
        scenario.source or "",
    )
