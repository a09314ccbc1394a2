"""What a run shows and writes."""

from __future__ import annotations

import io
import json

from rich.console import Console

from stvl.train.hooks import Hook, Hooks, JsonLines, TensorBoard, Terminal

ROW = {
    "loss": 2.0,
    "accuracy": 0.25,
    "clips_per_second": 80.0,
    "step_seconds": 0.1,
    "data_wait": 0.05,
    "mfu": 0.123,
}


def test_a_loss_without_accuracy_shows_similarities_or_nothing_in_its_place(capsys):
    hook = Terminal(steps=10, start=0, batch=8)
    plain = {name: value for name, value in ROW.items() if name != "accuracy"}
    hook.write(3, plain)
    hook.write(4, {**plain, "positive_similarity": 0.5, "negative_similarity": 0.125})
    hook.close()
    lines = capsys.readouterr().out.splitlines()
    rest = "  80 clips/s  step 100 ms  data wait 5%  MFU 12.3%"
    assert lines[0] == "step 3/10  loss 2.000" + rest
    assert lines[1] == "step 4/10  loss 2.000  similarity 0.500 of pairs, 0.125 of others" + rest


def test_json_lines_are_appended_and_flushed(tmp_path):
    for step in (1, 2):
        hook = JsonLines(tmp_path)
        hook.write(step, {"loss": step / 2})
        rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert (rows[-1]["step"], rows[-1]["loss"]) == (step, step / 2)
        hook.close()
    assert len(rows) == 2


def test_tensorboard_events_hold_the_scalars(tmp_path):
    hook = TensorBoard(tmp_path)
    hook.write(3, {"loss": 0.5, "EpicMIR/map.avg": 0.25})
    hook.close()
    (events,) = (tmp_path / "events").iterdir()
    assert b"loss" in events.read_bytes()
    assert b"EpicMIR/map.avg" in events.read_bytes()


def test_a_terminal_line_shows_everything_beside_chance(capsys):
    hook = Terminal(steps=10, start=0, batch=8)
    hook.write(3, ROW)
    hook.write(3, {"EpicMIR/map.avg": 0.5})
    hook.say("[not markup]")
    hook.close()
    lines = capsys.readouterr().out.splitlines()
    # log(8) = 2.08 and 1 / 8 = 12.5 % are what a model that learns nothing shows.
    assert lines[0] == (
        "step 3/10  loss 2.000 (chance 2.08)  accuracy 25.0% (chance 12.5%)  80 clips/s"
        "  step 100 ms  data wait 5%  MFU 12.3%"
    )
    assert lines[1:] == ["[not markup]"]


def test_a_terminal_shows_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        "stvl.train.hooks.Console",
        lambda **_: Console(file=screen, force_terminal=True, width=200, soft_wrap=True),
    )
    hook = Terminal(steps=10, start=0, batch=8)
    hook.write(7, ROW)
    hook.close()
    assert "7/10" in screen.getvalue()
    assert "MFU 12.3%" in screen.getvalue()


def test_hooks_pass_everything_on(tmp_path):
    class Notes:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def write(self, step: int, row: dict[str, float]) -> None:
            self.seen.append((step, row))

        def say(self, text: str) -> None:
            self.seen.append(text)

        def flush(self) -> None:
            self.seen.append("flushed")

        def close(self) -> None:
            self.seen.append("closed")

    one, two = Notes(), Notes()
    assert isinstance(one, Hook)
    hooks = Hooks(one, two)
    hooks.write(1, {"loss": 1.0})
    hooks.say("hello")
    hooks.flush()
    hooks.close()
    assert one.seen == two.seen == [(1, {"loss": 1.0}), "hello", "flushed", "closed"]
