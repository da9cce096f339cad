"""Seconds per phase: of blocks within blocks, of iterators, of other processes, on a clock of the test's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from worldmodels.support import profile
from worldmodels.support.profile import add_profiles, add_to_profile, phase, phase_of, take_profile


@pytest.fixture
def wait(monkeypatch):
    """Clock that advances only when `wait` is called, by its argument in seconds."""
    now = [100.0]
    monkeypatch.setattr(profile, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    take_profile()
    return wait


def test_a_block_counts_without_its_inner_blocks(wait):
    wait(1)
    for _ in range(2):
        with phase("rollout"):
            wait(2)
            with phase("engine"):
                wait(5)
            with pytest.raises(ZeroDivisionError), phase("engine"):
                wait(1)
                _ = 1 / 0
            wait(3)
    with phase("engine"):
        wait(0.5)
    assert take_profile() == {"engine": 12.5, "rollout": 10.0, "other": 1.0}
    assert take_profile() == {"other": 0.0}


def test_an_iterator_counts_while_it_produces_its_items(wait):
    def numbers():
        for number in range(3):
            wait(number)
            yield number
        wait(4)

    found = []
    for number in phase_of("data", numbers()):
        wait(10)
        found.append(number)
    assert found == [0, 1, 2]
    assert take_profile() == {"data": 7.0, "other": 30.0}


def test_profiles_of_other_processes_are_added_and_the_wait_for_them_is_left_out(wait):
    with phase(None):
        wait(6)
    wait(1)
    for _ in range(2):
        add_to_profile({"engine": 4.0, "other": 1.0})
    assert take_profile() == {"engine": 8.0, "other": 3.0}


def test_a_profile_can_be_taken_within_a_block(wait):
    with phase("rollout"):
        wait(2)
        assert take_profile() == {"other": 0.0, "rollout": 2.0}
        wait(3)
    assert take_profile() == {"rollout": 3.0, "other": 0.0}


def test_threads_have_profiles_of_their_own(wait):
    def work():
        with phase("data"):
            wait(2)
        assert take_profile() == {"other": 0.0, "data": 2.0}

    with phase("wait"), ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()
    assert take_profile() == {"other": 0.0, "wait": 2.0}


def test_profiles_add_up_phase_by_phase():
    found = add_profiles([{"other": 1.0, "data": 2.0}, {"forward": 4.0, "data": 1.0}])
    assert found == {"data": 3.0, "forward": 4.0, "other": 1.0}
    assert add_profiles([]) == {}
