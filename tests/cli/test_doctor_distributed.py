"""``stvl doctor --distributed`` on one process, its table, and the options that processes are started with."""

from __future__ import annotations

import json

import pytest

from stvl.cli import distributed
from stvl.cli.main import main, parse_args
from stvl.cli.train import Args
from stvl.dist.health import Health
from stvl.dist.peers import PeersError
from stvl.dist.place import Distributed


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("STVL_COORDINATOR", "STVL_PROCESSES", "STVL_PROCESS"):
        monkeypatch.delenv(name, raising=False)


def test_one_process(tmp_path, capsys):
    words = ["--checkpoint", str(tmp_path / "runs"), "--json", str(tmp_path / "health.json")]
    assert main(["doctor", "--distributed", "--cluster", "none", *words]) == 0
    out = capsys.readouterr().out
    assert "processes: 1 of 1 arrived (one process)" in out and "all is well" in out
    found = json.loads((tmp_path / "health.json").read_text())
    assert found["problems"] == [] and found["rows"][0]["stages"]["write"]["ok"]


def test_a_folder_in_a_bucket(gcs, bucket, capsys):
    assert main(["doctor", "--distributed", "--cluster", "none", "--checkpoint", f"gs://{bucket}/runs"]) == 0
    assert "all is well" in capsys.readouterr().out
    assert "POST runs/.stvl-probe-" in " ".join(gcs.requests) and gcs.names(bucket) == []
    assert main(["doctor", "--distributed", "--cluster", "none", "--checkpoint", "s3://b/runs"]) == 1
    assert "s3:// is not supported" in capsys.readouterr().out


def test_a_problem_exits_with_1(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--distributed", "--cluster", "none", "--checkpoint", str(tmp_path / "file")]) == 1
    out = capsys.readouterr().out
    assert "problem:   process 0 (" in out and "writing to the checkpoint folder" in out
    assert "NO (" in out and "all is well" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--distributed", "configs/quickstart.py"], "--distributed looks at machines"),
        (["--distributed", "--shapes", "text-77"], "--distributed looks at machines"),
        (["--distributed", "--timeout", "0"], "--timeout is above 0 seconds, found 0"),
        (["--checkpoint", "x"], "--checkpoint belongs to --distributed"),
        (["--distributed", "--coordinator", "a:1"], "missing: --processes (or STVL_PROCESSES)"),
        (["--distributed", "--cluster", "slurm"], "start the program with srun"),
    ],
)
def test_words_that_do_not_go_together(words, message, capsys):
    assert main(["doctor", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_start_that_fails_exits_with_1_on_the_others_too(monkeypatch):
    def fail(*words: object) -> None:
        raise PeersError("process 3 did not arrive")

    monkeypatch.setattr(distributed, "examine", fail)
    with pytest.raises(PeersError) as caught:
        distributed.doctor(Distributed(), "", 1.0, None)
    assert caught.value.exit_code == 1


def test_the_table_of_a_start_that_failed(capsys):
    rows = (
        {"process": 0, "host": "a", "arrived": True, "versions": {}, "stages": {}},
        {"process": 1, "host": None, "arrived": False, "versions": {}, "stages": {}},
    )
    distributed.print_health(Health(2, "SLURM", None, rows, {"jax": "1.0"}, ("process 1 did not arrive",)))
    out = capsys.readouterr().out
    assert "processes: 1 of 2 arrived (SLURM)\n" in out and "did not arrive" in out
    assert out.endswith("problem:   process 1 did not arrive\n")


def test_options_of_train_stand_before_the_overrides():
    words = [
        "configs/quickstart.py",
        "--coordinator",
        "h:1",
        "--processes",
        "4",
        "--process",
        "2",
        "steps=3",
        "a.b=1",
    ]
    args = parse_args(Args, words, "train")
    assert args.overrides == ("steps=3", "a.b=1")
    assert args.options() == Distributed(coordinator="h:1", processes=4, process=2)
