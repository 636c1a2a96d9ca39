# SPDX-License-Identifier: Apache-2.0
"""Time, and what works in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_epd.planner.simulate.events import Cores, Device, EngineOnCores, Events


def test_events_of_one_time_keep_their_order():
    events, seen = Events(), []
    for number in range(3):
        events.at(1.0, lambda number=number: seen.append((events.now, number)))
    events.at(0.5, lambda: events.after(0.5, lambda: seen.append((events.now, "later"))))
    events.run()
    assert seen == [(1.0, 0), (1.0, 1), (1.0, 2), (1.0, "later")]


def ends_of(cores, tasks):
    """When tasks of `(start, work)` end on so many cores."""
    events = Events()
    worker, ends = Cores(events, cores), {}
    for number, (start, work) in enumerate(tasks):

        def begin(number=number, work=work):
            worker.start(work, lambda: ends.__setitem__(number, events.now))

        events.at(start, begin)
    events.run()
    return [ends[number] for number in range(len(tasks))]


SHARED = {
    "one alone": (1, [(1.0, 2.0)], [3.0]),
    "as many as cores": (2, [(0.0, 2.0), (0.0, 3.0)], [2.0, 3.0]),
    "two on one core": (1, [(0.0, 1.0), (0.0, 1.0)], [2.0, 2.0]),
    "one gets through while the other is there": (1, [(0.0, 3.0), (1.0, 1.0)], [4.0, 3.0]),
    "three on two": (2, [(0.0, 2.0), (0.0, 2.0), (0.0, 4.0)], [3.0, 3.0, 5.0]),
    "nothing to do": (1, [(0.0, 0.0), (0.0, 1.0)], [0.0, 1.0]),
}


@pytest.mark.parametrize(("cores", "tasks", "ends"), SHARED.values(), ids=SHARED.keys())
def test_tasks_share_cores(cores, tasks, ends):
    assert ends_of(cores, tasks) == pytest.approx(ends)


def test_engines_slow_each_other_down_and_what_runs_beside_them():
    events, ends = Events(), {}
    cores = Cores(events, 4, contention=0.25)
    engine = EngineOnCores(cores)
    engine.start(1.0, lambda: ends.setdefault("first", events.now))
    engine.start(2.0, lambda: ends.setdefault("second", events.now))
    cores.start(1.0, lambda: ends.setdefault("beside", events.now))
    events.run()
    assert ends == pytest.approx({"first": 1.25, "beside": 1.25, "second": 2.25})


def test_no_more_engines_contend_than_have_a_core():
    events, ends = Events(), []
    engine = EngineOnCores(Cores(events, 2, contention=0.25))
    for _ in range(3):
        engine.start(1.0, lambda: ends.append(events.now))
    events.run()
    assert ends == pytest.approx([1.5 * 1.25] * 3)


TASKS = st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 20)), min_size=1, max_size=12)


@given(cores=st.integers(1, 4), tasks=TASKS)
def test_no_core_is_idle_while_a_task_waits_and_none_does_two_at_once(cores, tasks):
    """By small steps of time, in which each task gets an equal part of the cores and at most one."""
    left = {number: work for number, (_, work) in enumerate(tasks)}
    ends, now = {}, 0.0
    while left:
        active = [number for number in left if tasks[number][0] <= now]
        coming = [tasks[number][0] - now for number in left if tasks[number][0] > now]
        rate = min(1.0, cores / len(active)) if active else 1.0
        until = min([left[number] / rate for number in active] + coming)
        now += until
        for number in active:
            left[number] -= until * rate
            if left[number] <= 1e-9:
                ends[number] = now
                del left[number]
    assert ends_of(cores, tasks) == pytest.approx([ends[number] for number in range(len(tasks))], abs=1e-6)


@pytest.mark.parametrize(("kind", "end"), [("alone", 3.0), ("shared", 4.0)])
def test_a_task_that_is_cut_ends_earlier(kind, end):
    events, seen = Events(), []
    worker = Device(events) if kind == "alone" else Cores(events, 1)
    task = worker.start(10.0, lambda: seen.append(("cut", events.now)))
    if kind == "shared":
        worker.start(1.0, lambda: seen.append(("other", events.now)))

    def cut():
        assert worker.progress(task) == pytest.approx(1.0)
        worker.cut(task, 3.0)

    events.at(1.0 if kind == "alone" else 2.0, cut)
    events.run()
    assert seen[-1] == ("cut", pytest.approx(end))
    assert len([each for each in seen if each[0] == "cut"]) == 1
