"""``stvl rope plot``."""

from __future__ import annotations

import inspect
import re

import pytest

from stvl.cli.main import main
from stvl.cli.rope import Args, run
from stvl.core.errors import ConfigError
from stvl.rope.catalogue import SCHEMES


def test_plot_writes_two_pictures_and_says_where(tmp_path, capsys):
    sizes = ["--head-width", "32", "--frames", "2", "--rows", "3", "--columns", "4"]
    assert main(["rope", "plot", "videorope", *sizes, "--out", str(tmp_path)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written == [str(tmp_path / f"videorope-{kind}.png") for kind in ("angles", "scores")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "videorope-angles.png",
        "videorope-scores.png",
    ]


def test_unknown_scheme_shows_the_nearest(capsys, tmp_path):
    assert main(["rope", "plot", "mrop", "--out", str(tmp_path / "new")]) == 1
    assert "unknown rotary scheme 'mrop' (did you mean 'mrope'?)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--head-width", "20"], "divisible by 16, found 20"),
        (["--rows", "0"], "sides of at least 1"),
        (["--columns", "-3"], "sides of at least 1"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(extra, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(["plot", "split", *extra, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [[], ["plot"], ["draw", "st"], ["plot", "st", "--head", "x"]])
def test_usage_is_shown_for_what_cannot_be_read(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        run(argv)
    assert caught.value.code == 2
    assert "stvl rope" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        run(["--help"])
    assert caught.value.code == 0
    assert "SCHEME-scores.png" in capsys.readouterr().out


def test_help_names_every_scheme():
    (hint,) = re.findall(r'scheme: .*\n    """(.*)\."""', inspect.getsource(Args))
    assert set(re.split(", | or ", hint)) == set(SCHEMES)
