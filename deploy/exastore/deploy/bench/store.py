"""The whole store over S3, side by side with SeaweedFS, on this machine.

Both stores run at once, on one file system, and s5cmd drives them in alternating turns: a round is
one turn of each, and who begins changes. Before each turn all dirty pages are written, so that
nobody pays for what the other left unwritten. Sources and results of s5cmd lie in memory. Every
object that is read is compared, by its size, with what was written; bytes are compared by the
stores' own checksums.

A ratio is our speed over theirs, so above 1 we are faster.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGKILL
from statistics import median
from typing import Final

from exastore.deploy.bench.stores import (
    BUCKET,
    OURS,
    SEAWEEDFS,
    Run,
    RunFailed,
    S5cmd,
    Store,
    exastore,
    peak_rss_bytes,
    reset_peak,
    rss_bytes,
    seaweedfs,
)
from exastore.deploy.layout import is_node
from exastore.deploy.spec import ClusterOptions
from exastore.deploy.status import StatusView, fetch_status
from exastore.erasure import codec

MIB: Final = 1 << 20
GIB: Final = 1 << 30
PARTS: Final = ("large", "small", "degraded", "rebuild", "memory", "huge")
#: Where s5cmd's files lie if there is room.
_MEMORY_FOLDER: Final = Path("/dev/shm")
_WORKERS: Final = 32
_UPLOADS: Final = 32
_HUGE_BYTES: Final = 5 * GIB
_DEAD_NODES: Final = 2
_WAIT_S: Final = 300.0
#: What a process may grow by while an object of 5 GiB passes: its buffers, and no more.
_HUGE_GROWTH_BYTES: Final = 150 * MIB

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    Attributes:
        peers: Out of `stores.PEERS`.
        parts: Out of PARTS.
        rounds: Turns of each store in "large" and "small"; medians count.
        folder: Where the stores keep their data; None: a temporary folder.
    """

    peers: tuple[str, ...] = (SEAWEEDFS,)
    parts: tuple[str, ...] = PARTS
    rounds: int = 5
    file_count: int = 4
    file_bytes: int = 256 * MIB
    small_count: int = 4000
    small_bytes: int = 4096
    nodes: int = 8
    code: str = "rs-4-2"
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table.

    Attributes:
        table: Out of PARTS.
        case: Which line.
        values: Figures by name, units last.
        target: What the figures should be, in words; "" where none was set.
        is_reached: Whether they are.
    """

    table: str
    case: str
    values: dict[str, float]
    target: str = ""
    is_reached: bool = True


def as_json(figure: Figure) -> dict[str, object]:
    """A line of the JSON lines."""
    name = f"{figure.table}-{figure.case}".replace(" ", "-")
    return {**asdict(figure), "id": name}


@dataclass(slots=True)
class _Bench:
    """What all parts share."""

    options: Options
    stores: Sequence[Store]
    files: Path
    progress: Progress
    client: S5cmd = field(default_factory=S5cmd)
    #: Makes the names of objects differ between turns.
    turn: int = 0

    @property
    def ours(self) -> Store:
        return next(store for store in self.stores if store.name == OURS)

    def put(self, store: Store, source: Path, prefix: str, *more: str, workers: int = 256) -> Run:
        os.sync()
        target = f"s3://{BUCKET}/{prefix}/"
        self.progress(f"    {store.name}: PUT")
        run = self.client.run(store, ["cp", *more, f"{source}/*", target], workers=workers)
        self.progress(f"    {store.name}: PUT took {run.seconds:.1f} s")
        return run

    def get(self, store: Store, prefix: str, expected_bytes: int, *, workers: int = 256) -> Run:
        """Raises RunFailed when other bytes came back than were written, by their number."""
        target = self.files / "got"
        target.mkdir()
        os.sync()
        try:
            source = f"s3://{BUCKET}/{prefix}/*"
            self.progress(f"    {store.name}: GET")
            run = self.client.run(store, ["cp", source, f"{target}/"], workers=workers)
            self.progress(f"    {store.name}: GET took {run.seconds:.1f} s")
            got_bytes = sum(path.stat().st_size for path in target.iterdir())
            if got_bytes != expected_bytes:
                raise RunFailed(f"{store.name} gave {got_bytes} bytes of {expected_bytes}")
        finally:
            shutil.rmtree(target)
        return run

    def remove(self, store: Store, prefix: str) -> None:
        self.client.run(store, ["rm", f"s3://{BUCKET}/{prefix}/*"])


def measure(options: Options, progress: Progress) -> Iterator[Figure]:
    """Start the stores, measure the parts, stop the stores.

    Raises:
        EnvironmentUnfit: A program or room is missing.
        RunFailed, StartFailed: A store or s5cmd failed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        near = _MEMORY_FOLDER if _is_roomy(options) else options.folder
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=near)))
        shared = [part for part in options.parts if part != "rebuild"]
        if shared:
            # Closed before the rebuild begins, which has a cluster of its own.
            with ExitStack() as inner:
                ours = inner.enter_context(
                    exastore(folder / OURS, _cluster_options(options), progress)
                )
                stores = [ours]
                if SEAWEEDFS in options.peers:
                    stores.append(inner.enter_context(seaweedfs(folder / SEAWEEDFS, progress)))
                bench = _Bench(options, stores, files, progress)
                for store in stores:
                    bench.client.run(store, ["mb", f"s3://{BUCKET}"])
                for part in shared:
                    progress(part)
                    yield from _MEASURES[part](bench)
        if "rebuild" in options.parts:
            progress("rebuild")
            cluster = _cluster_options(options, out_after_s=4.0)
            with exastore(folder / "rebuild", cluster, progress) as ours:
                bench = _Bench(options, [ours], files, progress)
                bench.client.run(ours, ["mb", f"s3://{BUCKET}"])
                yield from _rebuild(bench)


def _cluster_options(options: Options, out_after_s: float = 900.0) -> ClusterOptions:
    return ClusterOptions(
        nodes=options.nodes, code=options.code, out_after_s=out_after_s, trash_grace_s=5.0
    )


def _is_roomy(options: Options) -> bool:
    needed = 2 * options.file_count * options.file_bytes + GIB
    return _MEMORY_FOLDER.is_dir() and shutil.disk_usage(_MEMORY_FOLDER).free > needed


# ---- side by side ----


def _large(bench: _Bench) -> Iterator[Figure]:
    options = bench.options
    source = _make_files(bench.files / "large", options.file_count, options.file_bytes)
    total_bytes = options.file_count * options.file_bytes
    runs = _take_turns(bench, source, total_bytes, workers=256)
    shutil.rmtree(source)
    size = f"{options.file_count} x {options.file_bytes // MIB} MiB"
    yield from _speeds(runs["put"], f"PUT {size}", total_bytes, 1.5)
    yield from _speeds(runs["get"], f"GET {size}", total_bytes, 1.0)


def _small(bench: _Bench) -> Iterator[Figure]:
    options = bench.options
    source = _make_files(bench.files / "small", options.small_count, options.small_bytes)
    total_bytes = options.small_count * options.small_bytes
    runs = _take_turns(bench, source, total_bytes, workers=_WORKERS)
    shutil.rmtree(source)
    for operation, by_store in runs.items():
        case = f"{operation.upper()} {options.small_bytes} B"
        yield from _rates(by_store, case, options.small_count, 1.0)


def _take_turns(
    bench: _Bench, source: Path, total_bytes: int, *, workers: int
) -> dict[str, dict[str, list[Run]]]:
    """Rounds of PUT and GET: operation -> store -> runs. The first round does not count."""
    runs: dict[str, dict[str, list[Run]]] = {
        operation: {store.name: [] for store in bench.stores} for operation in ("put", "get")
    }
    for number in range(bench.options.rounds + 1):
        bench.progress(f"  round {number} of {bench.options.rounds}")
        order = bench.stores if number % 2 else list(reversed(bench.stores))
        prefix = f"{source.name}-{number}"
        puts = {store.name: bench.put(store, source, prefix, workers=workers) for store in order}
        gets = {
            store.name: bench.get(store, prefix, total_bytes, workers=workers) for store in order
        }
        for store in order:
            bench.remove(store, prefix)
            if number:
                runs["put"][store.name].append(puts[store.name])
                runs["get"][store.name].append(gets[store.name])
    return runs


def _speeds(
    runs: Mapping[str, Sequence[Run]], case: str, total_bytes: int, target: float
) -> Iterator[Figure]:
    """MB/s, the ratio, and CPU seconds per GiB of each process."""
    values: dict[str, float] = {}
    for name, of_store in runs.items():
        values[f"{name}_mb_per_s"] = total_bytes / 1e6 / _seconds(of_store)
    yield _compared("large", case, values, runs, target)
    for name, of_store in runs.items():
        cpu = {
            f"{role}_cpu_s_per_gib": seconds * GIB / total_bytes
            for role, seconds in _cpu(of_store).items()
        }
        yield Figure("large", f"{case} CPU of {name}", cpu)


def _rates(
    runs: Mapping[str, Sequence[Run]], case: str, count: int, target: float
) -> Iterator[Figure]:
    """Objects per second, the ratio, and CPU microseconds per object of each process."""
    values = {f"{name}_per_s": count / _seconds(of_store) for name, of_store in runs.items()}
    yield _compared("small", case, values, runs, target)
    for name, of_store in runs.items():
        cpu = {f"{role}_cpu_us": seconds / count * 1e6 for role, seconds in _cpu(of_store).items()}
        yield Figure("small", f"{case} CPU of {name}", cpu)


def _compared(
    table: str,
    case: str,
    values: dict[str, float],
    runs: Mapping[str, Sequence[Run]],
    target: float,
) -> Figure:
    """With the ratio to the peer: the median of the ratios within rounds."""
    if SEAWEEDFS not in runs:
        return Figure(table, case, values)
    pairs = zip(runs[OURS], runs[SEAWEEDFS], strict=True)
    ratios = sorted(theirs.seconds / ours.seconds for ours, theirs in pairs)
    ratio = median(ratios)
    values |= {"ratio": ratio, "ratio_low": ratios[0], "ratio_high": ratios[-1]}
    return Figure(table, case, values, f"ratio >= {target:g}", ratio >= target)


def _seconds(runs: Sequence[Run]) -> float:
    return median(run.seconds for run in runs)


def _cpu(runs: Sequence[Run]) -> dict[str, float]:
    """Median CPU seconds of each process, and of all."""
    cpu = {role: median(run.cpu_s[role] for run in runs) for role in runs[0].cpu_s}
    return {**cpu, "all": median(sum(run.cpu_s.values()) for run in runs)}


# ---- ours alone ----


def _degraded(bench: _Bench) -> Iterator[Figure]:
    """GET with all nodes, then with two killed, of objects written before."""
    options, store = bench.options, bench.ours
    source = _make_files(bench.files / "degraded", options.file_count, options.file_bytes)
    total_bytes = options.file_count * options.file_bytes
    bench.put(store, source, "degraded")
    shutil.rmtree(source)
    bench.get(store, "degraded", total_bytes)
    healthy = [bench.get(store, "degraded", total_bytes) for _ in range(options.rounds)]
    assert store.cluster is not None
    _kill_nodes(store, _DEAD_NODES)
    _wait(store, lambda status: status.up_device_count == options.nodes - _DEAD_NODES, bench)
    degraded = [bench.get(store, "degraded", total_bytes) for _ in range(options.rounds)]
    # Started again for the parts that follow.
    store.cluster.up(ClusterOptions(), bench.progress)
    ratio = _seconds(healthy) / _seconds(degraded)
    yield Figure(
        "degraded",
        f"GET {options.file_count} x {options.file_bytes // MIB} MiB, {_DEAD_NODES} nodes dead",
        {
            "healthy_mb_per_s": total_bytes / 1e6 / _seconds(healthy),
            "degraded_mb_per_s": total_bytes / 1e6 / _seconds(degraded),
            "ratio": ratio,
        },
        "ratio >= 0.7",
        ratio >= 0.7,
    )


def _rebuild(bench: _Bench) -> Iterator[Figure]:
    """PUT, then the rebuild of everything that one killed node had."""
    options, store = bench.options, bench.ours
    source = _make_files(bench.files / "rebuild", options.file_count, options.file_bytes)
    total_bytes = options.file_count * options.file_bytes
    puts = [bench.put(store, source, f"rebuild-{i}") for i in range(options.rounds + 1)][1:]
    shutil.rmtree(source)
    os.sync()
    assert store.cluster is not None
    _kill_nodes(store, 1)
    status = _wait(
        store,
        lambda status: (
            status.repair.rebuilt_chunk_bytes > 0
            and not status.repair.active
            and status.missing_slot_count == 0
        ),
        bench,
    )
    repair = status.repair
    put_rate = total_bytes / _seconds(puts)
    rate = repair.rebuilt_chunk_bytes / repair.elapsed_s
    overhead = codec(options.code).overhead
    yield Figure(
        "rebuild",
        "one node of " + str(options.nodes),
        {
            "put_mb_per_s": put_rate / 1e6,
            "put_stored_mb_per_s": put_rate * overhead / 1e6,
            "rebuilt_mb": repair.rebuilt_chunk_bytes / 1e6,
            "read_mb": repair.read_bytes / 1e6,
            "rebuilt_mb_per_s": rate / 1e6,
            "ratio": rate / put_rate,
        },
        "ratio >= 0.6",
        rate >= 0.6 * put_rate,
    )


def _memory(bench: _Bench) -> Iterator[Figure]:
    """Peaks of the processes' memory under many uploads at once."""
    options, store = bench.options, bench.ours
    source = _make_files(bench.files / "memory", 1, options.file_bytes)
    (first,) = source.iterdir()
    for number in range(1, _UPLOADS):
        (source / f"link-{number}").hardlink_to(first)
    _reset_peaks(store)
    run = bench.put(store, source, "memory", "--concurrency", "1", workers=_UPLOADS)
    shutil.rmtree(source)
    peaks = _peaks(store)
    bench.remove(store, "memory")
    yield Figure(
        "memory",
        f"{_UPLOADS} uploads of {options.file_bytes // MIB} MiB at once",
        {**peaks, "mb_per_s": _UPLOADS * options.file_bytes / 1e6 / run.seconds},
        "gateway <= 300 MiB, node <= 250 MiB",
        peaks["gateway_peak_mib"] <= 300 and peaks["node_peak_mib"] <= 250,
    )


def _huge(bench: _Bench) -> Iterator[Figure]:
    """One PUT of 5 GiB, not multipart, and how much larger the processes are at their peak."""
    store = bench.ours
    source = bench.files / "huge"
    source.mkdir()
    with (source / "zeros").open("wb") as file:
        file.truncate(_HUGE_BYTES)
    before = {role: rss_bytes(pid) for role, pid in store.pids.items()}
    _reset_peaks(store)
    one_part = ("--part-size", str(_HUGE_BYTES // MIB), "--concurrency", "1")
    run = bench.put(store, source, "huge", *one_part)
    shutil.rmtree(source)
    growth = {role: peak_rss_bytes(pid) - before[role] for role, pid in store.pids.items()}
    bench.remove(store, "huge")
    largest = max(growth.values())
    yield Figure(
        "huge",
        "one PUT of 5 GiB",
        {
            **_peaks(store),
            "gateway_growth_mib": growth["gateway"] / MIB,
            "largest_growth_mib": largest / MIB,
            "mb_per_s": _HUGE_BYTES / 1e6 / run.seconds,
        },
        f"growth <= {_HUGE_GROWTH_BYTES // MIB} MiB, whatever the size",
        largest <= _HUGE_GROWTH_BYTES,
    )


_MEASURES: Final[Mapping[str, Callable[[_Bench], Iterator[Figure]]]] = {
    "large": _large,
    "small": _small,
    "degraded": _degraded,
    "memory": _memory,
    "huge": _huge,
}


def _kill_nodes(store: Store, count: int) -> None:
    assert store.cluster is not None
    children = store.cluster.children()
    for name in sorted(name for name in children if is_node(name))[:count]:
        children[name].send(SIGKILL)


def _make_files(folder: Path, count: int, size_bytes: int) -> Path:
    """Files of random bytes; no two share a block."""
    folder.mkdir()
    for number in range(count):
        with (folder / f"{number:06d}").open("wb") as file:
            left_bytes = size_bytes
            while left_bytes:
                left_bytes -= file.write(os.urandom(min(left_bytes, 16 * MIB)))
    return folder


def _wait(store: Store, is_done: Callable[[StatusView], bool], bench: _Bench) -> StatusView:
    assert store.cluster is not None
    clock = store.cluster.clock
    deadline_s = clock.monotonic_s() + _WAIT_S
    ready = store.cluster.ready("metadata")
    assert ready is not None
    while True:
        status = fetch_status([ready.address], timeout_s=5.0)
        if is_done(status):
            return status
        if clock.monotonic_s() > deadline_s:
            raise RunFailed(f"the cluster was not ready for more within {_WAIT_S:.0f} s")
        clock.sleep_blocking(0.2)


def _reset_peaks(store: Store) -> None:
    for pid in store.pids.values():
        reset_peak(pid)


def _peaks(store: Store) -> dict[str, float]:
    peaks = {role: peak_rss_bytes(pid) / MIB for role, pid in store.pids.items()}
    return {
        "gateway_peak_mib": max(v for role, v in peaks.items() if role.startswith("gateway")),
        "node_peak_mib": max(v for role, v in peaks.items() if role.startswith("node-")),
        "metadata_peak_mib": peaks["metadata"],
    }
