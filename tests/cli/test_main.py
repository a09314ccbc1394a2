"""The command line: finding commands, saying what went wrong, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stvl
from stvl.cli.main import COMMANDS, main
from tests.fixtures import ROOT


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"], ["data", "--help"]])
def test_help_lists_every_command_and_exit_code(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in out
        assert text in out
    assert "75  training was preempted" in out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"stvl {stvl.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    assert end.value.code == 0
    assert f"usage: stvl {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "error: stvl has no command 'trian' (did you mean 'train'?)"),
        (["evaluate"], "error: stvl has no command 'evaluate' (did you mean 'eval'?)"),
        (["data", "chek"], "error: stvl has no command 'data chek' (did you mean 'data check'?)"),
        (["data"], "error: stvl has no command 'data'"),
    ],
)
def test_unknown_commands_show_the_nearest_and_exit_with_2(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train"], "What"),
        (["train", "folder", "--nosuch"], "--nosuch"),
        (["search"], "What to look for"),
        (["embed", "--text", "a"], "--out"),
        (["data", "toy", "--out", "x", "--world.seed", "one"], "--world.seed"),
    ],
)
def test_options_that_cannot_be_understood_exit_with_2(argv, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert said == "What" or said in captured.err + captured.out


def test_errors_are_one_message_and_exit_with_1(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["train", "quikstart"]) == 1
    assert capsys.readouterr().err == "error: no config 'quikstart' (did you mean 'quickstart'?)\n"


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "stvl", "trian"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean 'train'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_traceback():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m stvl --help | true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
