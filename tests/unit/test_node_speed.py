"""When an answer is late, and whom reads go around."""

from tests.unit.test_gateway_clients import SetClock

from exastore.gateway.node_speed import NodeSpeed

NODES = [f"node-{number}" for number in range(6)]


def speed_of(clock: SetClock, typical_s: float) -> NodeSpeed:
    speed = NodeSpeed(clock, least_s=0.1, most_s=0.5, avoided_s=3.0)
    for node in NODES:
        speed.note_answer(node, typical_s)
    clock.s += 1
    return speed


def test_an_answer_is_late_by_what_nodes_typically_take_within_limits() -> None:
    clock = SetClock()
    assert NodeSpeed(clock, least_s=0.1, most_s=0.5, avoided_s=3.0).patience_s() == 0.5
    assert speed_of(clock, 0.001).patience_s() == 0.1
    assert speed_of(clock, 0.03).patience_s() == 8 * 0.03
    assert speed_of(clock, 0.3).patience_s() == 0.5


def test_one_slow_node_makes_nobody_more_patient() -> None:
    clock = SetClock()
    speed = speed_of(clock, 0.002)
    for _ in range(100):
        speed.note_answer(NODES[0], 5.0)
    clock.s += 1
    assert speed.patience_s() == 0.1


def test_a_node_that_is_overtaken_again_and_again_is_left_alone_for_longer() -> None:
    clock = SetClock()
    speed = speed_of(clock, 0.002)
    for seconds in (3, 6, 12, 24, 30, 30):
        for _ in range(10):
            speed.note_overtaken(NODES[1])  # many reads of one moment count once
        assert speed.slow_addresses() == {NODES[1]}
        clock.s += seconds - 0.01
        assert speed.slow_addresses() == {NODES[1]}
        clock.s += 0.02
        assert not speed.slow_addresses()


def test_a_node_that_answers_in_time_is_forgiven_and_one_that_is_late_is_not() -> None:
    clock = SetClock()
    speed = speed_of(clock, 0.002)
    speed.patience_s()
    speed.note_overtaken(NODES[1])
    speed.note_answer(NODES[1], 0.4)
    assert speed.slow_addresses() == {NODES[1]}
    speed.note_answer(NODES[1], 0.01)
    assert not speed.slow_addresses()
    speed.note_overtaken(NODES[2])
    speed.forget(NODES[2])
    assert not speed.slow_addresses()
