"""``stvl claims``: listing, a shrunken run, resumption, the report, and what is refused."""

from __future__ import annotations

import json

import pytest

from stvl.claims.catalogue import CLAIMS
from stvl.cli.main import main


def test_list_names_every_claim_and_arm(capsys):
    assert main(["claims", "list"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"│ {name} " in out for name in CLAIMS)
    assert "sms-without-tau" in out and "st-learned" in out


@pytest.mark.slow
def test_a_shrunken_run_writes_records_and_a_report_and_goes_on(tmp_path, capsys):
    out, page = tmp_path / "claims", tmp_path / "page.md"
    words = [
        "claims",
        "run",
        "losses",
        "--arms",
        "pretrain",
        "--steps",
        "1",
        "--videos",
        "5",
        "--out",
        str(out),
    ]
    assert main([*words, "--seeds", "3", "--markdown", str(page)]) == 0
    found = json.loads((out / "losses/seed-3/pretrain.json").read_text())
    assert (found["seed"], found["steps"], found["claim"]) == (3, 1, "losses")
    said = capsys.readouterr().out
    assert "losses seed 3 pretrain: mAP " in said and "mean ± standard deviation" in said
    assert f"{100 * found['metrics']['mir/map.avg']:.2f}" in page.read_text()
    assert main([*words, "--seeds", "3"]) == 0
    assert "losses seed 3 pretrain: done before" in capsys.readouterr().out
    # All claims that were run, with nothing named.
    assert main(["claims", "report", "--out", str(out)]) == 0
    assert "InfoNCE pre-training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "losess"], "error: there is no claim 'losess' (did you mean 'losses'?)\n"),
        (["run"], "error: there is no claim '' (there are: losses, motion)\n"),
        (["run", "losses", "--steps", "0"], "error: steps is at least 1, found 0\n"),
        (["run", "motion", "--arms", "ts"], "error: the claim 'motion' has no arm 'ts'"),
        (["report", "losses"], "losses holds no records: run `stvl claims run losses` first\n"),
        (["report"], "holds no claim that was run: `stvl claims run NAME --out "),
    ],
)
def test_what_cannot_be_done_is_said(words, message, tmp_path, capsys):
    assert main(["claims", *words, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_a_word_that_is_no_action_exits_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["claims", "lst"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("'lst'", "'list'", "'run'", "'report'"))
