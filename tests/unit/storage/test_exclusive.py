"""One thread at a time; the same thread further in; and a forked child does not wait for ever."""

import os
import threading

import pytest

from spectral_core.storage import exclusive
from spectral_core.storage.exclusive import exclusively


def entered_by_another_thread():
    """Whether another thread gets in within a moment."""
    inside = threading.Event()

    def enter():
        with exclusively():
            inside.set()

    threading.Thread(target=enter, daemon=True).start()
    return inside.wait(0.2)


def test_other_threads_wait_and_the_same_one_does_not():
    with exclusively():
        with exclusively():
            assert not entered_by_another_thread()
        assert not entered_by_another_thread()
    assert entered_by_another_thread()


def test_an_exception_lets_the_next_one_in():
    with pytest.raises(KeyError), exclusively():
        raise KeyError
    assert entered_by_another_thread()


@pytest.fixture
def held_by_another_thread():
    holding, leave = threading.Event(), threading.Event()

    def hold():
        with exclusively():
            holding.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(60)
    yield
    leave.set()
    thread.join(60)


@pytest.mark.usefixtures("held_by_another_thread")
def test_what_a_forked_child_does_frees_it_of_a_thread_that_it_has_not(monkeypatch):
    monkeypatch.setattr(exclusive, "_lock", exclusive._lock)  # and puts it back
    assert not entered_by_another_thread()
    exclusive._renew()
    assert entered_by_another_thread()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
@pytest.mark.usefixtures("held_by_another_thread")
def test_a_forked_child_gets_in():
    child = os.fork()
    if not child:
        os._exit(0 if entered_by_another_thread() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
