"""What 99 % of the requests of the last seconds took at most, in constant memory."""

import math

#: Buckets are this factor apart, so a quantile is told at most 12 % too high.
_FACTOR = 1.12
_LEAST_S = 1e-4
_BUCKET_COUNT = 120
_LOG_FACTOR = math.log(_FACTOR)


class RecentLatency:
    """Two windows of `window_s` seconds, of which the older is forgotten: the last one to two."""

    def __init__(self, window_s: float = 2.0) -> None:
        self._window_s = window_s
        self._recent = [0] * _BUCKET_COUNT
        self._older = [0] * _BUCKET_COUNT
        self._begun_s = -math.inf

    def note(self, duration_s: float, now: float) -> None:
        """A request took so long. `now` in seconds, never going back."""
        self._turn(now)
        index = math.ceil(math.log(max(duration_s, _LEAST_S) / _LEAST_S) / _LOG_FACTOR)
        self._recent[min(index, _BUCKET_COUNT - 1)] += 1

    def p99(self, now: float) -> tuple[float, int]:
        """(seconds, number of requests); (0, 0) when there were none."""
        self._turn(now)
        counts = [a + b for a, b in zip(self._recent, self._older, strict=True)]
        total = sum(counts)
        left = math.floor(total / 100)
        for index in range(_BUCKET_COUNT - 1, -1, -1):
            left -= counts[index]
            if left < 0:
                return _LEAST_S * _FACTOR**index, total
        return 0.0, 0

    def _turn(self, now: float) -> None:
        age = now - self._begun_s
        if age < self._window_s:
            return
        self._older = self._recent if age < 2 * self._window_s else [0] * _BUCKET_COUNT
        self._recent = [0] * _BUCKET_COUNT
        self._begun_s = now
