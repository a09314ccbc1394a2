"""The start and the end of one process among others; the real thing, with jax, is in tests/launch."""

from __future__ import annotations

import sys

import pytest

from stvl.core.errors import ConfigError, DataError
from stvl.dist import start as module
from stvl.dist.peers import Peers, PeersError
from stvl.dist.place import Distributed, Place
from stvl.dist.start import Started, digest, exit_code, own_facts, start
from tests.fixtures import ROOT


class Said(Peers):
    """Peers that note how they were left."""

    def __init__(self, ending: bool = False) -> None:
        super().__init__(Place("a:1", 2, 1, "options"))
        self.grace, self.left, self._ending = 0.0, [], ending

    def leave(self, code: int = 0, text: str = "") -> None:
        self.left.append((code, text))


@pytest.fixture
def ends(monkeypatch):
    """(text, code) of each end, and ``jax`` where jax was shut down in peace."""
    found: list = []
    monkeypatch.setattr(module, "_shutdown", lambda: found.append("jax"))
    return found


def run(peers: Said, ends: list, problem: BaseException | None) -> None:
    with Started(peers.place, peers, 0.0, lambda text, code: ends.append((text, code))):
        if problem is not None:
            raise problem


class Preempted(DataError):
    exit_code = 75


def test_a_good_end_waits_for_the_others(ends):
    peers = Said()
    run(peers, ends, None)
    assert ends == ["jax"] and peers.left == [(0, "")]


def test_preemption_is_a_good_end(ends):
    peers = Said()
    with pytest.raises(Preempted):
        run(peers, ends, Preempted("saved"))
    assert ends == ["jax"] and peers.left == [(75, "saved")]


@pytest.mark.parametrize(
    ("problem", "code", "text"),
    [
        (DataError("broken clip"), 1, "broken clip"),
        (PeersError("versions", 1), 1, "versions"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt:"),
        (SystemExit(2), 2, "SystemExit: 2"),
        (RuntimeError("xla"), 1, "RuntimeError: xla"),
    ],
)
def test_an_error_is_told_to_the_others_and_waits_for_nobody(ends, capsys, problem, code, text, monkeypatch):
    peers = Said()
    monkeypatch.setattr(peers, "is_ending", lambda seconds: False)
    with pytest.raises(type(problem)):
        run(peers, ends, problem)
    assert [(said.strip(), number) for said, number in ends] == [(text, code)]
    assert peers.left == [(code, text)]
    # A traceback for what nobody foresaw only.
    assert ("Traceback" in capsys.readouterr().err) == (type(problem) is RuntimeError)


def test_a_collective_that_breaks_lets_the_peers_say_who_died(ends, capsys):
    peers = Said(ending=True)
    with pytest.raises(RuntimeError):
        run(peers, ends, RuntimeError("Gloo: connection closed by peer"))
    # Nothing was said before the time in which the peers' own thread would have ended the process.
    assert ends == [("RuntimeError: Gloo: connection closed by peer", 1)]


def test_one_process_starts_nothing(monkeypatch, tmp_path):
    for name in ("STVL_COORDINATOR", "STVL_PROCESSES", "STVL_PROCESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_initialise", lambda *words: pytest.fail("jax.distributed was started"))
    with start(Distributed(cluster="none")) as started:
        assert started.place is None and started.describe() == ""
    with pytest.raises(DataError), start(Distributed(cluster="none")):
        raise DataError("passes through")


def test_finding_out_that_one_is_alone_does_not_import_jax():
    import subprocess

    code = (
        "import sys; from stvl.dist.start import start; from stvl.dist.place import Distributed; "
        "start(Distributed(cluster='none')); print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (None, 0),
        (SystemExit(None), 0),
        (SystemExit(3), 3),
        (SystemExit("text"), 1),
        (KeyboardInterrupt(), 130),
        (ConfigError("x"), 1),
        (PeersError("x"), 76),
        (ValueError("x"), 1),
    ],
)
def test_exit_codes(problem, code):
    assert exit_code(problem) == code


def test_digest_changes_with_config_and_overrides(tmp_path):
    config = tmp_path / "a.py"
    config.write_text("one")
    found = {digest(str(config), ()), digest(str(config), ("a=1",)), digest(str(config), ("a=", "1"))}
    config.write_text("two")
    found |= {digest(str(config), ()), digest("quickstart", ())}
    assert len(found) == 5 and all(len(text) == 12 for text in found)


def test_facts():
    import jax

    import stvl

    same = own_facts("abc")["same"]
    assert same["jax"] == jax.__version__ and same["stvl"] == stvl.__version__ and same["job"] == "abc"
    assert same["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "job" not in own_facts()["same"]
