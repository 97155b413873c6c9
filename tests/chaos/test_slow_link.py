"""A node behind a slow link: requests go around it, and none fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

#: A namespace of our own, with a veth pair and a token bucket filter in it.
PROBE = (
    "ip link add near type veth peer name far && ip link set near up && "
    "tc qdisc add dev near root tbf rate 1mbit burst 16kb latency 400ms"
)
UNSHARE = ("unshare", "--net", "--map-root-user")
#: Seconds. Reads are hedged after 0.1 to 0.5 s, writes wait 5 s for stragglers; the rest is for a
#: busy machine.
READ_LIMIT_S, WRITE_LIMIT_S = 2.0, 7.0
#: The limit of the slowest of a hundred reads while one node is 0.2 s away behind 5 Mbit/s and
#: another one stands still.
P99_LIMIT_S = 0.5


def why_not() -> str:
    """Why this machine does not let us slow a link down; empty: it does."""
    for name in ("unshare", "ip", "tc", "nsenter"):
        if shutil.which(name) is None:
            return f"there is no {name}"
    probe = subprocess.run([*UNSHARE, "sh", "-c", PROBE], capture_output=True, text=True)
    return " ".join(probe.stderr.split()) if probe.returncode else ""


def seconds_of(scenario: str, folder: Path) -> dict[str, list[float]]:
    """Sorted seconds of requests, by what happened meanwhile."""
    reason = why_not()
    if reason:
        pytest.skip(f"no link can be slowed down here: {reason}")
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.chaos.slow_link", scenario, str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = {what: sorted(seconds) for what, seconds in json.loads(done.stdout).items()}
    for what, seconds in figures.items():
        print(f"{what}: {figure(seconds)}")
    return figures


def p99(seconds: list[float]) -> float:
    return seconds[len(seconds) * 99 // 100]


def figure(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    median = seconds[len(seconds) // 2]
    return f"{len(seconds)}, median {median:.3f}, p99 {p99(seconds):.3f}, max {seconds[-1]:.3f} s"


def test_reads_and_writes_go_around_a_node_behind_a_slow_link(tmp_path: Path) -> None:
    figures = seconds_of("narrow", tmp_path)
    assert figures["read_during"][-1] < READ_LIMIT_S + figures["read_before"][-1]
    assert figures["write_during"][-1] < WRITE_LIMIT_S + figures["write_before"][-1]
    # The link is slow indeed.
    assert sum(figures["read_during"]) > sum(figures["read_before"])


def test_reads_stay_quick_beside_a_distant_node_and_one_that_stands_still(tmp_path: Path) -> None:
    figures = seconds_of("troubled", tmp_path)
    for what in ("read_distant", "read_both", "read_after"):
        assert p99(figures[what]) < P99_LIMIT_S + p99(figures["read_before"]), what
        assert figures[what][-1] < READ_LIMIT_S + figures["read_before"][-1], what


def test_a_port_for_chunks_that_is_cut_off_costs_little_until_grpc_takes_its_place(
    tmp_path: Path,
) -> None:
    figures = seconds_of("firewalled", tmp_path)
    for what in ("read_during", "read_after"):
        assert p99(figures[what]) < P99_LIMIT_S + p99(figures["read_before"]), what
        assert figures[what][-1] < READ_LIMIT_S + figures["read_before"][-1], what
    assert figures["write_during"], "nothing was cut off"
    assert figures["write_during"][-1] < WRITE_LIMIT_S + figures["write_before"][-1]
