"""Interleaved timing: the order of turns, and what is computed from their times; not how fast anything is."""

import dataclasses

from hyperflux.timing import TURN_SECONDS, Turn, fastest, interleave


def test_variants_take_turns_after_a_warm_up_turn():
    order, waits = [], []
    turns = {name: Turn(lambda name=name: order.append(name), calls=1) for name in "abc"}
    interleave(turns, 4, lambda: waits.append(len(order)))
    assert order == list("abc") * 5
    assert waits == [done for index in range(15) for done in (index, index + 1)]


def test_ratios_are_to_the_first_of_the_same_round_and_times_a_call():
    turns = {"first": Turn(lambda: None, calls=1), "second": Turn(lambda: sum(range(1000)), calls=1)}
    first, second = interleave(turns, 5)
    assert (first.ratio, first.lowest_ratio, first.highest_ratio) == (1, 1, 1)
    assert 0 < second.lowest_ratio <= second.ratio <= second.highest_ratio
    assert second.to_dict() == dataclasses.asdict(second)


class FakeClock:
    """Every turn takes as long as it says."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("hyperflux.timing.time.perf_counter", lambda: self.now)

    def turn(self, *seconds, calls=1):
        left = iter(seconds)

        def take():
            self.now += next(left)

        return Turn(take, calls)


def test_medians_and_extremes(monkeypatch):
    clock = FakeClock(monkeypatch)
    turns = {"dense": clock.turn(99, 1, 4, 2), "other": clock.turn(99, 3, 2, 2, calls=2)}
    dense, other = interleave(turns, 3)
    assert (dense.seconds, dense.ratio) == (2, 1)
    assert (other.seconds, other.ratio, other.lowest_ratio, other.highest_ratio) == (1, 0.5, 0.25, 1.5)


def test_the_least_of_turns_that_are_taken_round_after_round(monkeypatch):
    clock, waits = FakeClock(monkeypatch), []
    turns = [clock.turn(4, 2, 99), clock.turn(99, 6, 8, calls=2)]
    assert fastest(turns, 3, lambda: waits.append(clock.now)) == [2, 3]
    assert waits == [0, 4, 4, 103, 103, 105, 105, 111, 111, 210, 210, 218]


def test_short_calls_are_repeated_until_a_turn_is_long_enough(monkeypatch):
    clock = FakeClock(monkeypatch)
    call = TURN_SECONDS / 100

    def work():
        clock.now += call

    turn = Turn.of(work)
    assert turn.calls == 128
    before = clock.now
    turn.run()
    assert abs(clock.now - before - 128 * call) < call / 2


def test_rare_work_is_timed_after_every_turn_and_its_share_is_added(monkeypatch):
    clock = FakeClock(monkeypatch)
    rare = clock.turn(99, 40, 80, 60).run
    turns = {"dense": clock.turn(99, 2, 2, 2), "watched": Turn(clock.turn(99, 3, 3, 3).run, 1, rare, rare_calls=20)}
    _, watched = interleave(turns, 3)
    assert (watched.seconds, watched.ratio, watched.lowest_ratio, watched.highest_ratio) == (6, 3, 2.5, 3.5)
