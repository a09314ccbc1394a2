"""The log of a run in a bucket: what arrives, when, and what happens where the bucket does not take it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stvl.core.paths import to_path
from stvl.train.hooks import Hook, JsonLines, TensorBoard
from stvl.train.logs import BucketLog, loggers, read_log
from stvl.train.spool import Spool

NEVER = 3600.0


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait for something that a thread does."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def steps_of(folder: str | Path) -> list[int]:
    return [row["step"] for row in read_log(folder)]


def test_each_kind_of_folder_has_its_loggers(bucket, tmp_path):
    lines, board = loggers(tmp_path)
    assert isinstance(lines, JsonLines) and isinstance(board, TensorBoard)
    (log,) = loggers(to_path(f"gs://{bucket}/run"))
    assert isinstance(log, BucketLog) and isinstance(log, Hook)
    for hook in (lines, board, log):
        hook.close()


def test_rows_arrive_at_a_flush_and_at_the_end(gcs, bucket):
    folder = f"gs://{bucket}/run"
    log = BucketLog(to_path(folder), every=NEVER)
    log.write(1, {"loss": 0.5})
    log.say("not a number")
    assert gcs.names(bucket) == []
    log.flush()
    assert steps_of(folder) == [1]
    log.write(2, {"loss": 0.25})
    log.close()
    rows = read_log(folder)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 0.25)]
    events, lines = gcs.names(bucket)
    assert lines == "run/log/000001.jsonl"
    assert re.fullmatch(r"run/events/events\.out\.tfevents\.\d+\..*\.000001", events)
    assert gcs.objects[bucket][events].data.count(b"loss") == 2


def test_rows_arrive_now_and_then(gcs, bucket):
    folder = f"gs://{bucket}/run"
    log = BucketLog(to_path(folder), every=0.05)
    for step in (1, 2):
        log.write(step, {"loss": 0.5})
        assert until(lambda step=step: steps_of(folder)[-1:] == [step])
    log.close()


def test_nothing_is_sent_twice_that_has_not_grown(gcs, bucket):
    log = BucketLog(to_path(f"gs://{bucket}/run"), every=NEVER)
    log.write(1, {"loss": 0.5})
    log.flush()
    assert until(lambda: bool(log._spool.flush()) and len(gcs.names(bucket)) == 2)
    before = [line for line in gcs.requests if line.startswith("POST run/log")]
    for _ in range(3):
        log.flush()
    assert [line for line in gcs.requests if line.startswith("POST run/log")] == before
    log.close()


def test_a_full_part_is_followed_by_another(gcs, bucket):
    folder = f"gs://{bucket}/run"
    log = BucketLog(to_path(folder), every=NEVER, part_bytes=100)
    for step in range(1, 8):
        log.write(step, {"loss": 0.5})
    log.close()
    lines = gcs.names(bucket, "run/log/")
    assert lines == [f"run/log/{part:06d}.jsonl" for part in range(1, len(lines) + 1)]
    assert len(lines) > 2 and all(len(gcs.objects[bucket][name].data) < 200 for name in lines)
    assert steps_of(folder) == list(range(1, 8))
    events = gcs.names(bucket, "run/events/")
    assert [name.rpartition(".")[2] for name in events] == [name[-12:-6] for name in lines]


def test_a_run_that_goes_on_keeps_the_rows_that_were_there(gcs, bucket):
    folder = f"gs://{bucket}/run"
    for start in (1, 2):
        log = BucketLog(to_path(folder), every=NEVER)
        for step in range(start, start + 2):
            log.write(step, {"loss": 0.5})
        log.close()
    assert gcs.names(bucket, "run/log/") == ["run/log/000001.jsonl", "run/log/000002.jsonl"]
    # Step 2 was taken twice, as in the log of a folder on a disk.
    assert steps_of(folder) == [1, 2, 2, 3]


def test_what_the_bucket_does_not_take_is_said_once_and_sent_later(gcs, bucket, capsys):
    folder = f"gs://{bucket}/run"
    log = BucketLog(to_path(folder), every=NEVER)
    log.write(1, {"loss": 0.5})
    gcs.refuse = f"POST {bucket}"
    log.flush()
    log.flush()
    err = capsys.readouterr().err
    assert err.startswith(f"log: cannot write to {folder} (OSError: Forbidden: ")
    assert "the log is kept in " in err and len(err.splitlines()) == 1
    gcs.refuse = None
    log.write(2, {"loss": 0.5})
    log.flush()
    assert capsys.readouterr().err == f"log: {folder} has all of it again\n"
    assert steps_of(folder) == [1, 2]
    log.close()
    assert capsys.readouterr().err == ""


def test_at_the_end_the_rest_stays_on_the_disk_where_the_bucket_does_not_take_it(gcs, bucket, capsys):
    log = BucketLog(to_path(f"gs://{bucket}/run"), every=NEVER)
    log.write(1, {"loss": 0.5})
    gcs.refuse = f"POST {bucket}"
    log.close()
    found = re.search(
        rf"not all of it has reached gs://{bucket}/run; it lies in (.*)\n", capsys.readouterr().err
    )
    assert found is not None
    row = json.loads((Path(found[1]) / "log/000001.jsonl").read_text())
    assert (row["step"], row["loss"]) == (1, 0.5)


def test_a_bucket_that_does_not_answer_delays_a_flush_no_longer_than_asked(tmp_path):
    answer = threading.Event()

    class Slow:
        def __truediv__(self, name: str) -> Slow:
            return self

        def write_bytes(self, data: bytes) -> None:
            answer.wait(20)

    spool = Spool(tmp_path, every=NEVER)
    spool.target = Slow()  # pyright: ignore[reportAttributeAccessIssue]
    (spool.folder / "a").write_text("x")
    begin = time.monotonic()
    assert not spool.flush(0.2)
    assert time.monotonic() - begin < 5
    answer.set()
    assert spool.flush(20.0)
    spool.close()
    assert not spool.folder.exists()


def test_a_folder_that_moved_has_both_forms(tmp_path):
    hook = JsonLines(tmp_path / "log", "000001.jsonl")
    hook.write(1, {"loss": 0.5})
    hook.close()
    time.sleep(0.002)
    hook = JsonLines(tmp_path)
    hook.write(2, {"loss": 0.5})
    hook.close()
    assert steps_of(tmp_path) == [1, 2]
    assert read_log(tmp_path / "nothing") == []


@pytest.mark.parametrize("name", ["log/notes.txt", "log/1.jsonl"])
def test_other_files_are_no_parts(name, bucket):
    folder = to_path(f"gs://{bucket}/run")
    (folder / name).write_text("no row")
    log = BucketLog(folder, every=NEVER)
    log.write(1, {"loss": 0.5})
    log.close()
    assert steps_of(str(folder)) == [1]
