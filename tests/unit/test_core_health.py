"""NodeHealth and TokenBucket."""

from collections.abc import Callable, Iterator

import pytest

from exastore.metadata.core.budget import TokenBucket
from exastore.metadata.core.health import (
    HealthOptions,
    Heartbeat,
    Intent,
    NodeHealth,
    SetDeviceState,
    Weights,
)
from exastore.metadata.core.topology import DeviceState

UP, DOWN, OUT, DRAINING = DeviceState.UP, DeviceState.DOWN, DeviceState.OUT, DeviceState.DRAINING
OPTIONS = HealthOptions(down_after_s=3.0, out_after_s=10.0, max_out_fraction=1.0)

MakeHealth = Callable[..., NodeHealth]


@pytest.fixture
def make_health() -> Iterator[MakeHealth]:
    """Makes cores and validates them at teardown."""
    made: list[NodeHealth] = []

    def make(known: dict[int, DeviceState] | None = None, now: float = 0.0) -> NodeHealth:
        made.append(NodeHealth(OPTIONS, known, now))
        return made[-1]

    yield make
    for health in made:
        health.validate()


def test_first_heartbeat_makes_devices_up(make_health: MakeHealth) -> None:
    health = make_health()
    assert health.next_deadline() is None
    commands = health.handle(Heartbeat(7, (0, 1)), 100.0)
    assert commands == [SetDeviceState(0, UP), SetDeviceState(1, UP)]
    assert health.handle(Heartbeat(7, (0, 1)), 101.0) == []
    assert health.next_deadline() == 103.0  # too early by now, which does no harm
    assert health.on_deadline(103.0) == []
    assert health.next_deadline() == 104.0


def test_silence_becomes_down_and_then_out(make_health: MakeHealth) -> None:
    health = make_health()
    health.handle(Heartbeat(7, (0,)), 0.0)
    assert health.on_deadline(2.999) == []
    assert health.on_deadline(3.0) == [SetDeviceState(0, DOWN)]
    assert health.next_deadline() == 10.0
    assert health.on_deadline(9.0) == []
    assert health.on_deadline(10.0) == [SetDeviceState(0, OUT)]
    assert health.next_deadline() is None


@pytest.mark.parametrize("silence_s", [3.0, 10.0])
def test_a_heartbeat_brings_a_device_back(make_health: MakeHealth, silence_s: float) -> None:
    health = make_health()
    health.handle(Heartbeat(7, (0,)), 0.0)
    health.on_deadline(silence_s)
    assert health.handle(Heartbeat(7, (0,)), 20.0) == [SetDeviceState(0, UP)]
    assert health.on_deadline(22.9) == []
    assert health.next_deadline() == 23.0
    assert health.on_deadline(23.0) == [SetDeviceState(0, DOWN)]


def test_a_late_deadline_goes_straight_to_out(make_health: MakeHealth) -> None:
    health = make_health()
    health.handle(Heartbeat(7, (0,)), 0.0)
    assert health.on_deadline(50.0) == [SetDeviceState(0, OUT)]


def test_a_device_left_out_of_heartbeats_falls_alone(make_health: MakeHealth) -> None:
    health = make_health()
    health.handle(Heartbeat(7, (0, 1)), 0.0)
    health.handle(Heartbeat(7, (1,)), 2.0)
    assert health.on_deadline(3.0) == [SetDeviceState(0, DOWN)]


def test_devices_never_seen_are_not_counted(make_health: MakeHealth) -> None:
    health = make_health()
    assert health.on_deadline(1e9) == []
    assert health.silence_s(4, 5.0) is None
    assert health.story(4) == []


def test_known_devices_get_full_grace_after_a_restart(make_health: MakeHealth) -> None:
    health = make_health({0: UP, 1: DOWN, 2: OUT}, now=1_000.0)
    assert health.on_deadline(1_002.0) == []
    assert health.on_deadline(1_003.0) == [SetDeviceState(0, DOWN)]
    assert health.on_deadline(1_010.0) == [SetDeviceState(0, OUT), SetDeviceState(1, OUT)]
    assert health.handle(Heartbeat(7, (2,)), 1_011.0) == [SetDeviceState(2, UP)]


def test_known_draining_devices_drain_on(make_health: MakeHealth) -> None:
    health = make_health({0: DRAINING})
    assert health.handle(Heartbeat(7, (0,)), 1.0) == []
    assert health.on_deadline(4.0) == [SetDeviceState(0, DOWN)]
    assert health.handle(Heartbeat(7, (0,)), 5.0) == [SetDeviceState(0, DRAINING)]


def test_the_operator_decides_what_a_serving_device_is(make_health: MakeHealth) -> None:
    health = make_health()
    health.handle(Heartbeat(7, (0,)), 0.0)
    assert health.handle(Intent(0, DRAINING), 1.0) == [SetDeviceState(0, DRAINING)]
    assert health.handle(Intent(0, OUT), 1.5) == [SetDeviceState(0, OUT)]
    assert health.handle(Heartbeat(7, (0,)), 2.0) == []
    assert health.on_deadline(2.5) == []
    assert health.handle(Intent(0, UP), 3.0) == [SetDeviceState(0, UP)]


def test_intent_for_a_silent_device_waits_until_it_answers(make_health: MakeHealth) -> None:
    health = make_health()
    health.handle(Intent(0, DRAINING), 0.0)
    assert health.handle(Heartbeat(7, (0,)), 0.0) == [SetDeviceState(0, DRAINING)]
    health.on_deadline(3.0)
    assert health.handle(Intent(0, UP), 4.0) == []
    assert health.handle(Heartbeat(7, (0,)), 5.0) == [SetDeviceState(0, UP)]
    health.on_deadline(15.0)
    assert health.handle(Intent(0, DRAINING), 16.0) == []
    assert health.state[0] == OUT


def test_a_silent_device_can_be_given_up_at_once(make_health: MakeHealth) -> None:
    health = make_health()
    health.handle(Heartbeat(7, (0,)), 0.0)
    health.on_deadline(3.0)
    assert health.handle(Intent(0, OUT), 4.0) == [SetDeviceState(0, OUT)]


def test_down_cannot_be_intended(make_health: MakeHealth) -> None:
    with pytest.raises(ValueError, match="DOWN is observed"):
        make_health().handle(Intent(0, DOWN), 0.0)


def test_story_tells_why(make_health: MakeHealth) -> None:
    health = make_health()
    health.handle(Heartbeat(7, (0,)), 0.0)
    health.on_deadline(3.5)
    assert health.story(0) == [
        "0.000 s: unseen -> UP: heartbeat of node 7",
        "3.500 s: UP -> DOWN: silent for 3.500 s",
    ]
    assert health.silence_s(0, 5.0) == 5.0


@pytest.mark.parametrize(("down", "out"), [(0.0, 1.0), (2.0, 1.0)])
def test_impossible_delays_are_refused(down: float, out: float) -> None:
    with pytest.raises(ValueError, match="down_after_s <= out_after_s"):
        HealthOptions(down, out)


def test_budget_lets_the_burst_pass_and_then_the_rate() -> None:
    bucket = TokenBucket(rate_bytes_per_s=100.0, burst_bytes=50.0)
    assert bucket.take(50, 0.0) == 0.0
    assert bucket.take(100, 0.0) == 1.0
    assert bucket.take(100, 1.0) == 1.0
    assert bucket.take(50, 2.5) == 0.0
    assert bucket.take(50, 100.0) == 0.0
    assert bucket.take(10, 100.0) == pytest.approx(0.1)


def test_budget_keeps_the_rate_over_a_long_run() -> None:
    bucket = TokenBucket(rate_bytes_per_s=1000.0, burst_bytes=10.0)
    now = 0.0
    for _ in range(100):
        now += bucket.take(77, now)
    assert now == pytest.approx((100 * 77 - 10) / 1000.0)


def test_budget_ignores_a_clock_that_steps_back() -> None:
    bucket = TokenBucket(rate_bytes_per_s=10.0, burst_bytes=10.0)
    assert bucket.take(10, 5.0) == 0.0
    assert bucket.take(10, 4.0) == 1.0
    assert bucket.take(0, 6.0) == 0.0


def test_budget_without_rate_never_waits() -> None:
    assert TokenBucket(0.0, 0.0).take(1 << 60, 0.0) == 0.0
    with pytest.raises(ValueError, match="negative"):
        TokenBucket(-1.0, 0.0)


# ---- too much silence at once ----


def half_may_go(device_count: int = 4) -> NodeHealth:
    health = NodeHealth(HealthOptions(down_after_s=3.0, out_after_s=10.0, max_out_fraction=0.5))
    health.handle(Heartbeat(0, tuple(range(device_count))), 0.0)
    return health


def test_silence_takes_out_half_of_the_devices_and_the_others_stay_down() -> None:
    health = half_may_go()
    health.handle(Heartbeat(0, (3,)), 8.0)
    health.on_deadline(8.0)
    assert health.on_deadline(10.0) == [SetDeviceState(0, OUT), SetDeviceState(1, OUT)]
    health.validate()
    assert (health.held, health.state[2]) == ({2}, DOWN)
    assert health.on_deadline(11.0) == [SetDeviceState(3, DOWN)]
    assert health.on_deadline(18.0) == []
    health.validate()
    assert health.held == {2, 3}
    assert health.next_deadline() is None
    assert "held DOWN" in health.story(2)[-1]


def test_a_device_that_returns_makes_room_for_one_that_was_held() -> None:
    health = half_may_go()
    health.on_deadline(10.0)
    assert health.held == {2, 3}
    assert health.handle(Heartbeat(0, (0,)), 20.0) == [SetDeviceState(0, UP)]
    health.validate()
    assert health.on_deadline(20.0) == [SetDeviceState(2, OUT)]
    assert health.handle(Heartbeat(0, (3,)), 20.0) == [SetDeviceState(3, UP)]
    assert health.held == set()
    health.validate()


def test_the_operator_sets_out_what_silence_may_not() -> None:
    health = half_may_go()
    health.on_deadline(10.0)
    assert health.handle(Intent(2, OUT), 11.0) == [SetDeviceState(2, OUT)]
    health.on_deadline(11.0)
    health.validate()
    assert health.held == {3}
    # What silence took out and the operator confirms no longer counts.
    assert health.handle(Intent(0, OUT), 12.0) == []
    assert health.handle(Intent(1, OUT), 12.0) == []
    assert health.on_deadline(12.0) == []
    assert health.held == {3}  # it alone would be all that is left


def test_weights_decide_how_much_is_out() -> None:
    health = half_may_go()
    health.handle(Weights((5.0, 1.0, 1.0, 1.0)), 0.0)
    assert health.on_deadline(10.0) == [
        SetDeviceState(0, DOWN),
        *(SetDeviceState(device, OUT) for device in (1, 2, 3)),
    ]
    assert health.held == {0}
    assert health.handle(Weights((3.0, 1.0, 1.0, 7.0)), 11.0) == []
    health.validate()
    assert health.on_deadline(11.0) == []


def test_a_fraction_is_between_none_and_all() -> None:
    with pytest.raises(ValueError, match="max_out_fraction"):
        HealthOptions(max_out_fraction=1.5)
