"""Signals set a flag; what a run ends with."""

import os
import signal
import threading

import pytest

from training.engine.preemption import SIGNALS, Council, StopSignals, Wish, preempted


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_dies(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.wish is Wish.GO_ON
        os.kill(os.getpid(), number)
        assert signals.wish is Wish.STOP
        assert signals.received == number
    assert signal.getsignal(number) == before


def test_the_first_signal_is_remembered():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGUSR1


def test_a_second_ctrl_c_interrupts_at_once():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == signal.SIGINT


def test_a_forked_process_ignores_what_it_inherits():
    with StopSignals() as signals:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(7 if signals.received is None else 8)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert signals.received is None


def test_in_a_thread_nothing_is_changed():
    before = signal.getsignal(signal.SIGUSR1)
    during = []

    def work():
        with StopSignals():
            during.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before]


def test_alone_a_process_hears_itself():
    council = Council(1)
    for wish in Wish:
        council.ask(wish)
        assert council.hear() is wish


def test_exit_status(monkeypatch):
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert preempted(signal.SIGUSR1, "runs/x", 20).exit_status == 75
    assert preempted(None, "runs/x", 20).exit_status == 75
    assert preempted(signal.SIGINT, "runs/x", 20).exit_status == 130
    assert "runs/x" in str(preempted(signal.SIGTERM, "runs/x", 20))


def test_the_cap_on_requeues(monkeypatch):
    for restarts, status in (("", 75), ("0", 75), ("2", 75), ("3", 1), ("4", 1)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        assert preempted(signal.SIGUSR1, "runs/x", 3).exit_status == status
    assert "max_requeues (3) allows" in str(preempted(signal.SIGUSR1, "runs/x", 3))
