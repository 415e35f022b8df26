"""The profiler: what runs is seen in proportion, nothing but names is told, and memory is bounded."""

from __future__ import annotations

import json
import threading

import pytest

from openautoglm.errors import OverloadedError
from openautoglm.probe import stacks
from openautoglm.probe.stacks import Profiler, StackProfile, collapsed_text, speedscope

SECRET = "kanarienvogel"


def outer(stop: threading.Event, secret: str) -> None:
    while not stop.is_set():
        often(stop, secret)
        seldom(stop, secret)


def often(stop: threading.Event, secret: str) -> None:
    stop.wait(0.03)


def seldom(stop: threading.Event, secret: str) -> None:
    stop.wait(0.01)


def test_functions_are_seen_in_proportion() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=outer, args=(stop, SECRET), name="worker;1")
    thread.start()
    profile = Profiler("here").start(seconds=1.0, rate_hz=200).result(30)
    stop.set()
    thread.join()
    mine = {stack: number for stack, number in profile.stacks.items() if stack.startswith("worker,1;")}
    name = f"{__name__}:"
    assert all(stack.index(name + "outer") > stack.index("threading:Thread.run") for stack in mine)
    seen = [sum(number for stack, number in mine.items() if name + each in stack) for each in ("often", "seldom")]
    assert sum(seen) >= 0.9 * profile.num_looks
    # Three to one by what the functions wait; a loaded machine shifts it.
    assert seen[0] > 1.5 * seen[1] > 0
    assert SECRET not in json.dumps(profile.stacks)
    assert not any("Profiler._sample" in stack for stack in profile.stacks)


def test_one_profile_at_a_time() -> None:
    profiler = Profiler("here")
    first = profiler.start(seconds=0.3, rate_hz=10)
    with pytest.raises(OverloadedError):
        profiler.start(seconds=0.1, rate_hz=10)
    assert 1 <= first.result(30).num_looks <= 4
    assert profiler.start(seconds=0.1, rate_hz=10).result(30).seconds >= 0.1


def test_many_stacks_are_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_MAX_STACKS", 1)
    stop = threading.Event()
    thread = threading.Thread(target=outer, args=(stop, SECRET))
    thread.start()
    profile = Profiler("here").start(seconds=0.2, rate_hz=100).result(30)
    stop.set()
    thread.join()
    assert len(profile.stacks) == 2
    assert profile.stacks["(more stacks)"] > 0
    monkeypatch.setattr(stacks, "_MAX_TEXT_BYTES", 10)
    short = Profiler("here").start(seconds=0.05, rate_hz=100).result(30)
    assert list(short.stacks) == ["(more stacks)"]


def test_deep_stacks_are_cut() -> None:
    stop = threading.Event()

    def dig(depth: int) -> None:
        if depth:
            dig(depth - 1)
        else:
            stop.wait()

    thread = threading.Thread(target=dig, args=(300,), name="deep")
    thread.start()
    profile = Profiler("here").start(seconds=0.05, rate_hz=100).result(30)
    stop.set()
    thread.join()
    (deep,) = [stack for stack in profile.stacks if stack.startswith("deep;")]
    assert deep.count(";") == 96


def test_files_are_what_tools_read() -> None:
    profiles = [
        StackProfile(process="engine", pid=5, seconds=1.0, num_looks=3, stacks={"main;a:b;a:c": 2, "main;a:b": 1}),
        StackProfile(process="http", pid=6, seconds=1.0, num_looks=3, stacks={"main;a:c": 3}),
    ]
    assert collapsed_text(profiles) == "engine;main;a:b;a:c 2\nengine;main;a:b 1\nhttp;main;a:c 3\n"
    file = speedscope(profiles)
    names = [frame["name"] for frame in file["shared"]["frames"]]  # type: ignore[index]
    told = [
        (each["name"], [";".join(names[frame] for frame in sample) for sample in each["samples"]], each["weights"])
        for each in file["profiles"]  # type: ignore[attr-defined]
    ]
    assert told == [("engine (5)", ["main;a:b;a:c", "main;a:b"], [2, 1]), ("http (6)", ["main;a:c"], [3])]
