"""A share of the machine's CPU for one process, by a control group: a small machine of its own."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_PERIOD_US = 20_000
_V1 = Path("/sys/fs/cgroup/cpu")
_V2 = Path("/sys/fs/cgroup")


class NoQuota(Exception):
    """This machine does not let us make control groups; says why."""


@contextmanager
def limited(pid: int, cores: float, name: str) -> Generator[None]:
    """Let a process, with all its threads and children to come, use at most so many cores.

    Args:
        pid: The process.
        cores: 0.25: a quarter of one.
        name: Of the group; removed at the end, the process returns to where it was.

    Raises:
        NoQuota: Groups cannot be made.
    """
    is_v1 = (_V1 / "cpu.cfs_quota_us").exists() or (_V1 / "cgroup.procs").exists()
    root = _V1 if is_v1 else _V2
    group = root / f"exastore-bench-{os.getpid()}-{name}"
    try:
        group.mkdir()
    except OSError as error:
        raise NoQuota(f"no control group can be made in {root}: {error.strerror}") from error
    try:
        quota_us = max(1000, round(cores * _PERIOD_US))
        try:
            if is_v1:
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            else:
                (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise NoQuota(f"{group} takes no quota: {error.strerror}") from error
        yield
    finally:
        try:
            for left in (group / "cgroup.procs").read_text().split():
                (root / "cgroup.procs").write_text(left)
        except OSError:
            pass  # it ended, or never was here
        group.rmdir()
