# SPDX-License-Identifier: Apache-2.0
"""The loop: tasks, notices, timers, descriptors."""

import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from guest.agent.loop import READABLE, Loop, Notice, Wait, pause

Steps = Generator[Wait, bool, Any]


class Outcome:
    """What a task came to."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def __call__(self, value: Any, error: Exception | None) -> None:
        self.values.append(value if error is None else error)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def turn_until(loop: Loop, condition: Callable[[], bool]) -> None:
    """Turn the loop; a timer that always exists keeps a turn from blocking for ever."""
    guard = loop.call_later(10, lambda: pytest.fail("the condition never came"))
    while not condition():
        loop.turn()
    guard.cancel()


def test_a_task_returns_its_value_at_once_when_it_need_not_wait(loop: Loop) -> None:
    def steps() -> Steps:
        return 5
        yield

    outcome = Outcome()
    task = loop.start(steps(), outcome)
    assert outcome.values == [5]
    assert task.finished


def test_an_error_of_a_task_reaches_whoever_started_it(loop: Loop) -> None:
    def steps() -> Steps:
        yield pause(0)
        raise ValueError("no")

    outcome = Outcome()
    loop.start(steps(), outcome)
    turn_until(loop, lambda: bool(outcome.values))
    assert isinstance(outcome.values[0], ValueError)


def test_a_notice_wakes_all_who_wait_now_and_has_no_memory(loop: Loop) -> None:
    notice = Notice()
    notice.notify()

    def steps(name: str) -> Steps:
        assert (yield notice.wait())
        return name

    outcome = Outcome()
    loop.start(steps("a"), outcome)
    loop.start(steps("b"), outcome)
    assert outcome.values == []
    notice.notify()
    assert outcome.values == [], "a task never runs inside whoever notifies"
    loop.turn()
    assert outcome.values == ["a", "b"]
    assert not notice.waiting


def test_a_wait_ends_with_false_when_its_time_is_up(loop: Loop) -> None:
    notice = Notice()

    def steps() -> Steps:
        return (yield notice.wait(0.001))

    outcome = Outcome()
    loop.start(steps(), outcome)
    turn_until(loop, lambda: bool(outcome.values))
    assert outcome.values == [False]
    assert not notice.waiting, "nothing stays behind in the notice"


def test_two_notices_at_once_wake_a_task_once(loop: Loop) -> None:
    first, second = Notice(), Notice()

    def steps() -> Steps:
        yield Wait((first, second))
        yield pause(0)
        return "once"

    outcome = Outcome()
    loop.start(steps(), outcome)
    first.notify()
    second.notify()
    turn_until(loop, lambda: bool(outcome.values))
    assert outcome.values == ["once"]


def test_a_cancelled_task_runs_its_finally_and_tells_nobody(loop: Loop) -> None:
    notice, ended = Notice(), []

    def steps() -> Steps:
        try:
            yield notice.wait(60)
        finally:
            ended.append(True)

    outcome = Outcome()
    task = loop.start(steps(), outcome)
    task.cancel()
    task.cancel()
    notice.notify()
    assert ended == [True]
    assert outcome.values == []
    assert not notice.waiting


def test_a_task_cancelled_after_it_was_woken_does_not_run(loop: Loop) -> None:
    notice = Notice()

    def steps() -> Steps:
        yield notice.wait()
        pytest.fail("it ran")

    task = loop.start(steps(), Outcome())
    notice.notify()
    task.cancel()
    loop.turn()


def test_timers_fire_in_the_order_of_their_times(loop: Loop) -> None:
    fired: list[str] = []
    loop.call_later(0.002, lambda: fired.append("late"))
    loop.call_later(0.001, lambda: fired.append("early"))
    cancelled = loop.call_later(0.0, lambda: fired.append("never"))
    cancelled.cancel()
    turn_until(loop, lambda: len(fired) == 2)
    assert fired == ["early", "late"]


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    for _ in range(10_000):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers._heap) < 200


def test_a_descriptor_may_be_unwatched_and_closed_by_another_callback_of_the_same_turn(loop: Loop) -> None:
    pairs = [os.pipe(), os.pipe()]
    called: list[int] = []

    def drop_both(events: int) -> None:
        called.append(1)
        for read_end, _ in pairs:
            loop.unwatch(read_end)
            os.close(read_end)

    for read_end, write_end in pairs:
        loop.watch(read_end, READABLE, drop_both)
        os.write(write_end, b"x")
    loop.turn()
    assert called == [1]
    for _, write_end in pairs:
        os.close(write_end)


def test_a_callback_that_raises_is_unwatched_and_the_loop_goes_on(
    loop: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    read_end, write_end = os.pipe()

    def bad(events: int) -> None:
        raise RuntimeError("a bug")

    loop.watch(read_end, READABLE, bad)
    os.write(write_end, b"x")
    loop.turn()
    fired: list[bool] = []
    loop.call_later(0, lambda: fired.append(True))
    turn_until(loop, lambda: bool(fired))
    assert "RuntimeError: a bug at loop.py" in capfd.readouterr().err
    os.close(read_end)
    os.close(write_end)
