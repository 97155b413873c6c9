"""The results of the fault matrix: one JSON file a part, and the page that all of them make.

python -m tests.chaos.fault_table        # out/faults/*.json -> docs/fault-matrix.md
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos.matrix import Outcome

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "out" / "faults", ROOT / "docs" / "fault-matrix.md"
HEAD = """# The fault matrix

Made from the results of `make chaos` by `python -m tests.chaos.fault_table`. What the columns mean
stands in [faults.md](faults.md).

"""


def save(part: str, outcomes: list[Outcome], **facts: Any) -> None:
    """Keep the results of a part."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    cases = [dataclasses.asdict(outcome) for outcome in outcomes]
    text = json.dumps({"part": part, **facts, "cases": cases}, indent=1)
    (RESULTS / f"{part}.json").write_text(text + "\n")


def page_of(parts: list[dict[str, Any]]) -> str:
    """The page: counts, then every case."""
    cases = [case for part in parts for case in part["cases"]]
    phases = {case["phase"] for case in cases}
    lines = [
        f"{len(cases)} cases of {len(phases)} phases, in {len(parts)} parts, each on a cluster of"
        " its own. Lost or wrong: none, or the run would have failed. Each case healed to full"
        " redundancy.",
        "",
        "| part | engine | cases | orphaned chunks reclaimed | seconds |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {part['part']} | {part['engine']} | {len(part['cases'])} | {part['orphans']} "
        f"| {part['seconds']} |"
        for part in parts
    ]
    counts = Counter((c["victim"], c["fault"], c["answer"], c["found"]) for c in cases)
    lines += ["", "| process hit | fault | client was told | key held | cases |"]
    lines += ["|---|---|---|---|---:|"]
    lines += [f"| {' | '.join(row)} | {count} |" for row, count in sorted(counts.items())]
    lines += ["", "| phase | fault | operation | client was told / key held |", "|---|---|---|---|"]
    told: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for part in parts:
        engine = "" if part["engine"] in ("SQLite", "none") else f" ({part['engine']})"
        for case in part["cases"]:
            row = told.setdefault((case["phase"], case["fault"] + engine, part["part"]), {})
            row.setdefault(f"{case['answer']}/{case['found']}", []).append(case["operation"])
    for (phase, fault, _), answers in told.items():
        for answer, operations in answers.items():
            lines.append(f"| {phase} | {fault} | {', '.join(operations)} | {answer} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    parts = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    assert parts, f"no results in {RESULTS}: run make chaos"
    PAGE.write_text(page_of(parts))


if __name__ == "__main__":
    main()
