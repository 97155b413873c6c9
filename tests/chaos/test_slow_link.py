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
#: Reads are hedged after 0.5 s, writes wait 2 s for stragglers; the rest is for a busy machine.
LIMIT_S = {"read": 2.0, "write": 5.0}


def why_not() -> str:
    """Why this machine does not let us slow a link down; empty: it does."""
    for name in ("unshare", "ip", "tc", "nsenter"):
        if shutil.which(name) is None:
            return f"there is no {name}"
    probe = subprocess.run([*UNSHARE, "sh", "-c", PROBE], capture_output=True, text=True)
    return " ".join(probe.stderr.split()) if probe.returncode else ""


def test_reads_and_writes_go_around_a_node_behind_a_slow_link(tmp_path: Path) -> None:
    reason = why_not()
    if reason:
        pytest.skip(f"no link can be slowed down here: {reason}")
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.chaos.slow_link", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, list[float]] = json.loads(done.stdout)
    for what, seconds in figures.items():
        ordered = sorted(seconds)
        print(f"{what}: median {ordered[len(ordered) // 2]:.3f} s, slowest {ordered[-1]:.3f} s")
    for what, limit_s in LIMIT_S.items():
        slowest_s = max(figures[f"{what}_during"])
        assert slowest_s < limit_s + max(figures[f"{what}_before"]), what
    # The link is slow indeed.
    assert sum(figures["read_during"]) > sum(figures["read_before"])
