"""SIGTERM: a flag for the loop, and a way out while the main thread is away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from stvl.train.signals import Exit, StopFlag, stop_on_sigterm
from tests.fixtures import ROOT


def test_a_signal_sets_the_flag_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "stvl-signals"]


def test_leaving_at_once_until_there_is_something_to_save():
    stop, left = StopFlag(), []
    stop.at_once(lambda: left.append("left"))
    assert left == []
    stop.ask()
    assert left == ["left"] and stop
    stop.after_saving()
    stop.ask()
    assert left == ["left"]
    # Asked for before, and now nothing would be lost.
    stop.at_once(lambda: left.append("again"))
    assert left == ["left", "again"]


def test_outside_the_main_thread_the_flag_stays():
    found = []

    def work() -> None:
        with stop_on_sigterm() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


AWAY = """
import os, zlib
from stvl.train.signals import stop_on_sigterm

with stop_on_sigterm() as stop:
    stop.at_once(lambda: os._exit(75))
    data = os.urandom(1 << 20) * 1500
    print("ready", flush=True)
    # One call into C that lets go of the interpreter's lock and takes many seconds, like a compiler: no handler of
    # Python's runs before it is back.
    zlib.compress(data, 9)
    os._exit(3)
"""


def test_the_way_out_is_open_while_the_main_thread_is_in_a_library():
    process = subprocess.Popen([sys.executable, "-c", AWAY], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1.0)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert time.monotonic() - begin < 2.0


@pytest.mark.parametrize(
    ("name", "code"), [("USAGE", 2), ("DAMAGED_DATA", 3), ("NON_FINITE", 4), ("PREEMPTED", 75)]
)
def test_exit_codes_are_the_documented_ones(name, code):
    assert Exit[name] == code
