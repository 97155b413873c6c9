"""What figures were taken on, and with what: goes into every line of results."""

import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from exastore.deploy.version import version as our_version
from exastore.erasure.kernels.native import host_features

#: What decides about the kernels, out of all that a processor has.
_FEATURES = ("avx2", "avx512f", "avx512bw", "gfni")
_NUMBERS = {"family": "cpu family", "model": "model", "stepping": "stepping"}
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Software and hardware of one run."""

    #: Of the checkout that runs, with "-dirty" if files differ from it; "" outside of one.
    commit: str
    version: str
    processor: str
    processor_features: str
    second_level_cache_bytes: int
    #: The core that was used; -1 if the system has no way to choose one.
    core: int
    huge_pages: str
    system: str
    python: str
    packages: str
    measured_at_unix_s: float


def provenance(core: int | None, now_s: float) -> Provenance:
    """Of a run on this core that begins now."""
    return Provenance(
        commit=commit(),
        version=our_version(),
        processor=processor(),
        processor_features=" ".join(name for name in _FEATURES if name in host_features()),
        second_level_cache_bytes=_second_level_cache_bytes(),
        core=-1 if core is None else core,
        huge_pages=_bracketed(_HUGE_PAGES),
        system=platform.platform(),
        python=platform.python_version(),
        packages=_packages("numpy", "llvmlite", "numba", "pyeclib", "zfec"),
        measured_at_unix_s=round(now_s, 3),
    )


def commit() -> str:
    """The commit of the checkout that this code runs from; "" if it runs from none."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def processor() -> str:
    """The name of the processor, and its numbers, since a hypervisor may name all models alike."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in text.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    numbers = [f"{key} {facts[k]}" for key, k in _NUMBERS.items() if k in facts]
    return f"{facts['model name']} ({', '.join(numbers)})" if numbers else facts["model name"]


def _second_level_cache_bytes() -> int:
    try:
        text = (_CACHES / "index2" / "size").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.fullmatch(r"([0-9]+)K\s*", text)
    return int(found[1]) * 1024 if found else 0


def _bracketed(path: Path) -> str:
    """The chosen one of `always [madvise] never`."""
    try:
        found = re.search(r"\[(\w+)\]", path.read_text(encoding="ascii"))
    except OSError:
        return ""
    return found[1] if found else ""


def _packages(*names: str) -> str:
    found: list[str] = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
