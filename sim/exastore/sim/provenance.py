"""What ran here: versions of the code and its libraries, and the machine."""

import hashlib
import os
import platform
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numba
import numpy as np

from exastore.sim.results import Provenance
from exastore.sim.scenario import Scenario, scenario_toml


def code_version() -> str:
    """Git commit of a checkout, with "+changes" if it differs; else the package's version."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"exastore {version('exastore')}"
    except PackageNotFoundError:
        return "unknown"


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def provenance(
    scenario: Scenario, *, seed: int, trials: int, placement_s: float, trials_s: float
) -> Provenance:
    """Provenance of a run that ends now."""
    text = scenario_toml(scenario)
    return Provenance(
        scenario_toml=text,
        scenario_sha256=hashlib.sha256(text.encode()).hexdigest(),
        seed=seed,
        trials=trials,
        years=float(scenario.run.years),
        code_version=code_version(),
        python=platform.python_version(),
        numpy=np.__version__,
        numba=numba.__version__,
        machine=f"{processor_name()}, {os.cpu_count()} cores, {platform.system()}",
        placement_s=placement_s,
        trials_s=trials_s,
        peak_memory_bytes=peak_memory_bytes(),
    )
