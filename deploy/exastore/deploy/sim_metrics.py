"""What a running simulation tells Prometheus: how far it is."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge


class SimMetrics:
    """The metrics of one run; `tell` is the run's `progress`."""

    def __init__(self, registry: CollectorRegistry, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._begins_s: dict[str, float] = {}
        self._done = Gauge(
            "exastore_sim_done",
            "Work of a phase that is done: placement groups when placing, trial-years when"
            " simulating.",
            ["scenario", "phase"],
            registry=registry,
        )
        self._total = Gauge(
            "exastore_sim_total", "Work of a phase.", ["scenario", "phase"], registry=registry
        )
        self._elapsed = Gauge(
            "exastore_sim_phase_seconds",
            "Time since a phase began, as of its last progress.",
            ["scenario", "phase"],
            registry=registry,
        )
        self._remaining = Gauge(
            "exastore_sim_remaining_seconds",
            "Time that a phase still takes if it goes on at its mean speed; NaN while unknown.",
            ["scenario", "phase"],
            registry=registry,
        )

    def tell(self, scenario: str, phase: str, done: float, total: float) -> None:
        """Take over the progress of a phase."""
        now_s = self._monotonic_s()
        elapsed_s = now_s - self._begins_s.setdefault(phase, now_s)
        self._done.labels(scenario, phase).set(done)
        self._total.labels(scenario, phase).set(total)
        self._elapsed.labels(scenario, phase).set(elapsed_s)
        left_s = elapsed_s * (total - done) / done if done else float("nan")
        self._remaining.labels(scenario, phase).set(left_s)
