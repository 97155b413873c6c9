"""Ten simulated years of an exabyte, decided by the code that ran the real cluster."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from exastore.deploy.clock import SystemClock
from exastore.deploy.demo.steps import DemoFailed, Outcome
from exastore.sim import Durability, Results, SimError, durability, load_scenario, run, summarize

#: What the summary at the end repeats.
HEADLINES = (
    "balance",
    "domain violations",
    "rebuilt",
    "P(any loss) per year",
    "P(any loss) per year, analytic",
    "time taken",
)


@dataclass(frozen=True, slots=True)
class Decade:
    """A simulated decade.

    Attributes:
        results: Its tables.
        durability: What they say about losing data.
        summary: (label, value, explanation) of every figure.
        policy: What is the same as in the real cluster, and what is not, in sentences.
        elapsed_s: Time it took, with compilation.
    """

    results: Results
    durability: Durability
    summary: list[tuple[str, str, str]]
    policy: list[str]
    elapsed_s: float

    def rows(self) -> list[tuple[str, str]]:
        """The figures that matter."""
        name = self.results.scenario.name
        return [
            (f"{name}: {label}", f"{value} ({text})" if text else value)
            for label, value, text in self.summary
            if label in HEADLINES
        ]

    def to_json(self) -> dict[str, object]:
        """Every figure, for programs."""
        provenance = self.results.provenance
        return {
            "scenario": self.results.scenario.name,
            "seed": provenance.seed,
            "years": provenance.years,
            "trials": self.results.trials.to_pylist(),
            "durability": asdict(self.durability),
            "policy": self.policy,
            "elapsed_s": self.elapsed_s,
            "summary": [
                {"label": label, "value": value, "text": text}
                for label, value, text in self.summary
            ],
        }


def simulate(
    preset: str, folder: Path, outcome: Outcome, console: Console, clock: SystemClock
) -> Decade:
    """Step 5: simulate, write the tables, and say what came out.

    Raises:
        DemoFailed: The scenario cannot be simulated.
    """
    begin_s = clock.monotonic_s()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        scenario = load_scenario(preset)
        is_drawn = console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=not is_drawn) as progress:
            tasks: dict[str, TaskID] = {}

            def tell(what: str, done: float, total: float) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], completed=done, total=total)

            results = run(scenario, progress=tell, monotonic_s=clock.monotonic_s)
    except SimError as error:
        raise DemoFailed(str(error)) from error
    results.write(folder)
    decade = Decade(
        results=results,
        durability=durability(results),
        summary=summarize(results),
        policy=policy_of(results, outcome),
        elapsed_s=clock.monotonic_s() - begin_s,
    )
    for line in decade.policy:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    for label, value, text in decade.summary:
        console.print(f"  {label:32} {value}  ({text})", markup=False, soft_wrap=True)
    return decade


def policy_of(results: Results, outcome: Outcome) -> list[str]:
    """What the simulated cluster has in common with the real one, and what not."""
    scenario, repair = results.scenario, outcome.repair
    assert repair is not None, "the decade follows the repair"
    return [
        "The same code as in the cluster above: weighted straw2 placement into a table of groups, "
        "choice of replacement devices, and repair by remaining redundancy, most endangered first.",
        f"The same rule: one chunk of a stripe per failure domain, here per "
        f"{scenario.placement.domain}, above per node. The code is {scenario.code} here, "
        f"{outcome.code} above; a silent node is given up after "
        f"{scenario.repair.out_after_s:g} s here, {outcome.out_after_s:g} s above.",
        f"Repair bandwidth per device: "
        f"{scenario.repair.write_bandwidth_bytes_per_s / 1e6:g} MB/s simulated; "
        f"{repair.device_bytes_per_s / 1e6:.1f} MB/s measured above, where "
        f"{repair.target_device_count} devices share one disk and all processes share this "
        "machine's cores.",
    ]
