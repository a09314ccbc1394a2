"""The watch over steps, with a clock of its own."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

from stvl.core.errors import ConfigError
from stvl.core.paths import to_path
from stvl.dist import watchdog
from stvl.dist.peers import STUCK
from stvl.dist.watchdog import Watchdog, WatchdogOptions

OPTIONS = WatchdogOptions(factor=4.0, minimum=3.0, first=100.0, repeat=50.0, window=3)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A watchdog, its clock, and how it ended the process."""

    def __init__(self, tmp_path, **changes: float) -> None:
        import dataclasses

        self.clock, self.ends = Clock(), []
        self.dog = Watchdog(
            dataclasses.replace(OPTIONS, **changes),
            tmp_path / "run",
            2,
            self.clock,
            lambda text, code: self.ends.append((text, code)),
        )

    def steps(self, *seconds: float, first: int = 1) -> None:
        for number, each in enumerate(seconds, first):
            self.clock.now += each
            self.dog.beat(number)

    def after(self, seconds: float) -> str:
        self.clock.now += seconds
        return self.dog.check()


def test_the_first_step_has_time_to_compile(tmp_path, capsys):
    run = Run(tmp_path)
    assert run.dog.limit == 100.0
    assert run.after(100.0) == ""
    assert run.after(0.5) == "process 2: the first step has taken 100 s; the limit is 100 s"
    assert not run.dog._seconds


def test_the_limit_is_k_medians_of_the_last_steps(tmp_path):
    run = Run(tmp_path)
    run.steps(90.0, 1.0, 2.0, 30.0)
    # Of 1, 2 and 30; the 90 of the first step is not counted.
    assert run.dog.limit == 8.0
    run.steps(1.0, first=5)
    assert list(run.dog._seconds) == [2.0, 30.0, 1.0]
    run.steps(0.1, 0.1, first=6)
    assert run.dog.limit == 3.0


def test_stacks_of_all_threads_go_to_stderr_and_the_run_folder(tmp_path, capsys):
    run = Run(tmp_path)
    run.steps(90.0, 1.0)
    waiting = threading.Event()
    other = threading.Thread(target=stand_here, args=(waiting,))
    other.start()
    try:
        assert run.after(4.0) == ""
        said = run.after(1.0)
    finally:
        waiting.set()
        other.join()
    assert said == (
        "process 2: the step after step 2 has taken 5 s; the median of the last 1 steps is 1 s, the limit is 4 s"
    )
    err, kept = capsys.readouterr().err, (tmp_path / "run/stacks-2.txt").read_text()
    for text in (err, kept):
        assert said in text and re.match(r"watchdog: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d: process 2", text)
        assert "in stand_here" in text and "in test_stacks_of_all_threads" in text


def stand_here(event: threading.Event) -> None:
    event.wait(20)


def test_a_dump_is_repeated_now_and_then_and_a_new_step_may_be_told_at_once(tmp_path):
    run = Run(tmp_path)
    run.steps(1.0, 1.0)
    assert [bool(run.after(seconds)) for seconds in (5.0, 49.0, 2.0, 10.0)] == [True, False, True, False]
    run.steps(1.0, first=3)
    # The median of 1 and 67 is 34.
    assert [bool(run.after(seconds)) for seconds in (136.0, 2.0)] == [False, True]
    assert run.ends == []


def test_a_process_that_is_stuck_can_be_ended(tmp_path):
    run = Run(tmp_path, exit_after=20.0)
    run.steps(1.0, 1.0)
    assert run.after(5.0) and run.after(10.0) == ""
    assert run.ends == []
    run.after(6.0)
    ((text, code),) = run.ends
    assert code == STUCK == 77
    assert (
        text.startswith("process 2: the step after step 2 has taken 21 s")
        and "exit_after = 20 s is over" in text
    )


def test_exit_after_does_not_come_before_the_limit(tmp_path):
    run = Run(tmp_path, exit_after=20.0)
    assert run.after(90.0) == "" and run.ends == []
    run.after(11.0)
    assert len(run.ends) == 1


def test_what_happens_between_steps_has_its_own_limit_and_is_no_part_of_a_step(tmp_path):
    run = Run(tmp_path)
    run.steps(1.0, 1.0)
    run.clock.now += 0.5
    with run.dog.busy("evaluation"):
        assert run.after(99.0) == ""
        assert run.after(2.0).startswith("process 2: evaluation has taken 101 s")
    run.steps(0.5, first=3)
    assert list(run.dog._seconds) == [1.0, 1.0]
    run.clock.now += 0.5
    with run.dog.busy("saving"):
        run.clock.now += 50
    assert run.after(2.0) == ""
    assert "the step after step 3 has taken 5 s" in run.after(2.5)


def test_steps_between_two_beats_share_their_time(tmp_path):
    run = Run(tmp_path)
    run.steps(1.0)
    run.clock.now += 6.0
    run.dog.beat(4)
    assert list(run.dog._seconds) == [2.0]


def test_the_thread_watches_and_ends_with_the_block(tmp_path, capsys):
    dog = Watchdog(WatchdogOptions(factor=1.0, minimum=0.0, first=0.2, repeat=60.0), tmp_path)
    with dog:
        deadline = time.monotonic() + 10
        while not (tmp_path / "stacks-0.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "process 0: the first step has taken" in (tmp_path / "stacks-0.txt").read_text()
    assert dog._thread is not None and not dog._thread.is_alive()


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    run = Run(tmp_path)
    assert run.after(101.0)
    said = re.search(r"watchdog: cannot write (.*): (.*Error.*); the stacks lie in (.*)\n", capsys.readouterr().err)
    assert said is not None and said[1] == str(tmp_path / "run/stacks-2.txt")
    assert "process 2: the first step has taken" in Path(said[3]).read_text()


def test_stacks_go_into_a_run_folder_in_a_bucket(gcs, bucket, capsys):
    for _ in range(2):
        assert Run(to_path(f"gs://{bucket}")).after(101.0)
    # The second start of the process keeps what the first one saw.
    assert gcs.text(bucket, "run/stacks-2.txt").count("process 2: the first step has taken") == 2
    assert "cannot write" not in capsys.readouterr().err


def test_a_bucket_that_hangs_or_refuses_does_not_hold_the_watchdog(gcs, bucket, capsys, monkeypatch):
    run = Run(to_path(f"gs://{bucket}"))
    gcs.refuse = f"POST {bucket}"
    assert run.after(101.0)
    refused = capsys.readouterr().err
    assert "OSError: Forbidden" in refused and "the stacks lie in" in refused
    answer = threading.Event()
    monkeypatch.setattr(watchdog, "append_text", lambda file, text: answer.wait(20))
    monkeypatch.setattr(watchdog, "WRITE_SECONDS", 0.1)
    assert run.after(1000.0)
    answer.set()
    assert "stacks-2.txt: no answer within 0 s; the stacks lie in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("factor", 0.5),
        ("minimum", -1.0),
        ("first", -1.0),
        ("repeat", -1.0),
        ("window", 0),
        ("exit_after", 0.0),
    ],
)
def test_options_that_make_no_sense(field, value):
    with pytest.raises(ConfigError, match=rf"watchdog\.{field} is .* found"):
        WatchdogOptions(**{field: value})
