"""The overlap engine in plain Python, run by run and group by group; slow, and kept for ever.

It knows every missing chunk run by itself, finds what a failure hurts by looking into the rows of
all groups, and takes no short cut for failures that overlap with nothing. See `overlap`.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import combinations
from math import comb, inf, prod

from exastore.erasure import codec
from exastore.sim._reference_draws import Draws
from exastore.sim.overlap_run import OverlapRun
from exastore.sim.scenario import Scenario

_ARRIVAL, _ARRIVAL_DEVICE = 201, 202


@dataclass
class _Run:
    """A missing chunk run, or a share of a device's chunks: `weight` runs."""

    device: int
    group: int
    index: int
    noticed_s: float
    weight: float = 1.0
    work: float = 1.0
    rate: float = 0.0
    #: With unlimited chunks, how many chunks its stripes miss.
    chunks: int = 0


@dataclass
class OverlapReference:
    """One trial after the other; `failures` and `losses` say what happened."""

    scenario: Scenario
    made: OverlapRun
    failures: list[tuple[int, float, int]] = field(default_factory=lambda: [])
    losses: list[tuple[int, float, int, int]] = field(default_factory=lambda: [])

    def __post_init__(self) -> None:
        self.rules = self.made.model.rules
        self.rows = self.made.model.pg_devices.tolist()
        self.code = codec(self.scenario.code)

    def run(self, trial: int) -> None:
        """Simulate a trial."""
        self.trial, self.now = trial, 0.0
        self.down: dict[int, list[_Run]] = {}
        self.lost: set[int] = set()
        for time_s, device in self._failures():
            self._work_until(time_s)
            if device in self.down:
                continue
            self.failures.append((trial, time_s, device))
            if self.rules["unlimited"]:
                self._fail_unlimited(device)
            else:
                self._fail(device)

    def _failures(self) -> "list[tuple[float, int]]":
        """All failures of a trial, whether the device is in place then or not."""
        draws = Draws(self.scenario, self.made.seed, self.trial)
        population, horizon_s = self.made.population, float(self.rules["horizon_s"])
        found: list[tuple[float, int]] = []
        first_lives: set[int] = set()
        queue: list[tuple[float, int, int]] = []
        lives: dict[int, int] = {}
        for number, row in enumerate(population.cohorts):
            hazard, law = 0.0, int(row["law"])
            drawn = 0
            while True:
                hazard += draws.exponential(_ARRIVAL, number, drawn) / int(row["count"])
                drawn += 1
                time_s = self._age_of(law, hazard + float(row["before"])) - float(row["age_s"])
                if time_s >= horizon_s:
                    break
                share = draws.uniform(_ARRIVAL_DEVICE, number, drawn)
                at = int(row["first"]) + int(share * int(row["count"]))
                device = int(population.members[at])
                if not row["ages"]:
                    found.append((time_s, device))
                elif device not in first_lives:
                    first_lives.add(device)
                    heappush(queue, (time_s, device, law))
        after_s = float(self.rules["detection_s"]) + 1.0 / float(self.rules["runs_per_s"])
        while queue:
            time_s, device, law = heappop(queue)
            found.append((time_s, device))
            lives[device] = lives.get(device, 0) + 1
            again_s = time_s + after_s + draws.life_s(device, law, lives[device], 0.0)
            if again_s < horizon_s:
                heappush(queue, (again_s, device, law))
        return sorted(found)

    def _age_of(self, law: int, hazard: float) -> float:
        row = self.made.population.physics.laws[law]
        if row["scale_s"] == inf:
            return inf
        if row["first_piece"] == row["end_piece"]:
            shape = float(row["shape"])
            scale = float(row["scale_s"])
            return scale * hazard if shape == 1.0 else scale * hazard ** (1.0 / shape)
        pieces = self.made.population.physics.pieces[row["first_piece"] : row["end_piece"]]
        piece = [one for one in pieces if one["before"] <= hazard][-1]
        if piece["per_s"] == 0.0:
            return inf
        return float(piece["from_s"] + (hazard - piece["before"]) / piece["per_s"])

    def _missing(self, group: int) -> list[_Run]:
        return [
            run
            for runs in self.down.values()
            for run in runs
            if run.group == group and run.work > 0.0
        ]

    def _redundancy(self, run: _Run) -> int:
        """How many more chunks the run's group can miss, or how many its loss was too many."""
        if self.rules["unlimited"]:
            return int(self.rules["sure"]) - run.chunks
        lost = {one.index for one in self._missing(run.group)}
        return self._redundancy_of(lost)

    def _redundancy_of(self, lost: set[int]) -> int:
        if self.code.is_mds:
            return self.code.m - len(lost)
        if not self.code.decodable(lost):
            back = next(
                size
                for size in range(1, len(lost) + 1)
                if any(self.code.decodable(lost - set(some)) for some in combinations(lost, size))
            )
            return -back
        further = 0
        rest = set(range(self.code.n)) - lost
        while all(
            self.code.decodable(lost | set(some)) for some in combinations(rest, further + 1)
        ):
            further += 1
        return further

    def _fail(self, device: int) -> None:
        noticed_s = self.now + float(self.rules["detection_s"])
        hit = [(group, row.index(device)) for group, row in enumerate(self.rows) if device in row]
        self.down[device] = [_Run(device, group, index, noticed_s) for group, index in hit]
        for group, _ in hit:
            missing = self._missing(group)
            if len(missing) > 1 and self.rules["restarts"]:
                for run in missing:
                    run.work, run.noticed_s = 1.0, noticed_s
            decodable = self._redundancy_of({run.index for run in missing}) >= 0
            if not decodable and group not in self.lost:
                self.lost.add(group)
                self.losses.append((self.trial, self.now, group, len(missing)))

    def _fail_unlimited(self, device: int) -> None:
        size, count = int(self.rules["domain_devices"]), int(self.rules["domain_count"])
        n, sure, domain = int(self.rules["n"]), int(self.rules["sure"]), device // size
        hit: dict[int, int] = {}
        for other in self.down:
            if other // size != domain:
                hit[other // size] = hit.get(other // size, 0) + 1
        worst = max(
            (
                run.chunks
                for other, runs in self.down.items()
                for run in runs
                if run.work > 0.0 and other // size != domain
            ),
            default=0,
        )
        worst = min(worst, len(hit), sure) + 1
        shares = [0.0] * n
        for chosen in range(min(len(hit), n - 1) + 1):
            odds = comb(count - 1 - len(hit), n - 1 - chosen) / comb(count - 1, n - 1)
            for domains in combinations(hit, chosen):
                for missing in range(chosen + 1):
                    for failed in combinations(domains, missing):
                        shares[missing] += odds * prod(
                            hit[one] / size if one in failed else 1 - hit[one] / size
                            for one in domains
                        )
        noticed_s = self.now + float(self.rules["detection_s"])
        runs: list[_Run] = []
        for chunks in range(1, worst + 1):
            share = sum(shares[chunks - 1 :]) if chunks == worst else shares[chunks - 1]
            weight = share * float(self.rules["runs_per_device"])
            runs.append(_Run(device, -1, -1, noticed_s, weight=weight, chunks=chunks))
        self.down[device] = runs
        if worst > sure:
            self.losses.append((self.trial, self.now, -1, worst))

    def _share_rates(self, runs: list[_Run]) -> None:
        up = int(self.rules["device_count"]) - len(self.down)
        left = min(
            float(self.rules["device_runs_per_s"]) * up, float(self.rules["link_runs_per_s"])
        )
        by_redundancy: dict[int, list[_Run]] = {}
        for run in runs:
            run.rate = 0.0
            if run.noticed_s <= self.now:
                by_redundancy.setdefault(self._redundancy(run), []).append(run)
        for redundancy in sorted(by_redundancy):
            some = by_redundancy[redundancy]
            count = sum(run.weight for run in some)
            rate = min(float(self.rules["runs_per_s"]), left / count)
            for run in some:
                run.rate = rate
            if left < inf:
                left = max(0.0, left - rate * count)

    def _work_until(self, until_s: float) -> None:
        while self.down and self.now < until_s:
            runs = [run for runs in self.down.values() for run in runs if run.work > 0.0]
            self._share_rates(runs)
            next_s = until_s
            for run in runs:
                if run.rate > 0.0:
                    next_s = min(next_s, self.now + run.work / run.rate)
                elif run.noticed_s > self.now:
                    next_s = min(next_s, run.noticed_s)
            for run in runs:
                if run.rate > 0.0:
                    is_done = self.now + run.work / run.rate <= next_s
                    run.work = 0.0 if is_done else run.work - run.rate * (next_s - self.now)
            self.now = next_s
            self.down = {
                device: runs
                for device, runs in self.down.items()
                if any(run.work > 0.0 for run in runs)
            }
            self.lost = {group for group in self.lost if self._missing(group)}
        self.now = until_s
