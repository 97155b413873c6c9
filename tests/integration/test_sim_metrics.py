"""A running simulation tells Prometheus how far it is."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from exastore.deploy.sim_metrics import SimMetrics


def test_the_time_left_follows_from_the_mean_speed() -> None:
    registry = CollectorRegistry()
    times = iter([100.0, 130.0, 200.0])
    metrics = SimMetrics(registry, lambda: next(times))

    def value(name: str) -> float | None:
        labels = {"scenario": "tiny", "phase": "simulating"}
        return registry.get_sample_value(f"exastore_sim_{name}", labels)

    metrics.tell("tiny", "simulating", 0.0, 40.0)
    assert str(value("remaining_seconds")) == "nan"
    metrics.tell("tiny", "simulating", 10.0, 40.0)
    assert (value("done"), value("total")) == (10.0, 40.0)
    assert (value("phase_seconds"), value("remaining_seconds")) == (30.0, 90.0)
    metrics.tell("tiny", "simulating", 40.0, 40.0)
    assert value("remaining_seconds") == 0.0


@pytest.mark.integration
def test_a_run_is_watched_while_it_lasts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "exastore.deploy", "sim", "run", "tiny", "--trials", "5000"]
    command += ["--out", str(tmp_path), "--metrics-address", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+/metrics", process.stderr.readline())
            assert found is not None
            done, text = 0.0, ""
            while done == 0.0:
                assert process.poll() is None
                with urllib.request.urlopen(found[0], timeout=60) as answer:
                    text = answer.read().decode()
                match = re.search(r'_sim_done\{phase="simulating",scenario="tiny"\} (\S+)', text)
                done = float(match[1]) if match else 0.0
            assert 'exastore_sim_total{phase="simulating",scenario="tiny"} 10000.0' in text
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 130
