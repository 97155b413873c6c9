"""What can go wrong in the simulator for reasons outside it.

SimError
├── ScenarioError   the scenario file is wrong; every error, each with its place
├── DecisionError   a user's function decided what cannot be
└── ResultsError    a results folder cannot be read
"""

from dataclasses import dataclass


class SimError(Exception):
    """Base of all errors that a user of the simulator can cause."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a scenario.

    Attributes:
        key: Dotted path of the key, "" for the whole file.
        text: What is wrong and what would be right.
        line: Line in the file, from 1; 0 where there is none.
    """

    key: str
    text: str
    line: int = 0


class ScenarioError(SimError):
    """A scenario that cannot be simulated. The text lists every problem, one a line."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        noun = "problem" if len(problems) == 1 else "problems"
        lines = [f"{source}: {len(problems)} {noun} in this scenario"]
        for problem in problems:
            place = f"line {problem.line}: " if problem.line else ""
            key = f"{problem.key}: " if problem.key else ""
            lines.append(f"  {place}{key}{problem.text}")
        super().__init__("\n".join(lines))


class ResultsError(SimError):
    """A folder that does not hold the results of a run."""


class DecisionError(SimError):
    """What a user's function of decisions gave back cannot be carried out."""

    def __init__(self, text: str) -> None:
        super().__init__(f"decisions.function: {text}")
