"""A world so small that its encoders can be written down: colours that brighten or darken, and their names."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from stvl.data.augment import EvalTransform

COLOURS = ("red", "green", "blue")
VERBS = ("brightens", "darkens")
VIDEOS = ("P01_01", "P01_02", "P01_03", "P01_04", "P01_05")
FPS = 10


class Words:
    """A tokenizer: one id a known word, 0 for the others and as padding."""

    vocab_size, context_length, end_id = 6, 4, 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(out, texts, strict=True):
            ids = [(*COLOURS, *VERBS).index(word) + 1 for word in text.split() if word in (*COLOURS, *VERBS)]
            row[: len(ids)] = ids[: self.context_length]
        return out


class FakeEncoders:
    """Mean colour and change of brightness; `blind` ones take the frames as a set and so cannot tell the verbs."""

    frames, size, width = 4, 16, 5

    def __init__(self, blind: bool = False, weights: str = "0" * 64) -> None:
        self.tokenizer = Words()
        self.transform = EvalTransform(size=self.size)
        self.blind, self.weights = blind, weights
        self.batches: list[int] = []

    def describe(self) -> dict:
        return {
            "positions": "none" if self.blind else "rope",
            "dtype": "float32",
            "weights_sha256": self.weights,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
        }

    def video(self, frames: np.ndarray) -> np.ndarray:
        assert frames.dtype == np.uint8
        self.batches.append(len(frames))
        colour = frames.astype(np.float32).mean((2, 3)) / 255
        change = np.zeros(len(frames)) if self.blind else (colour[:, -1] - colour[:, 0]).sum(1)
        mean = colour.mean(1)
        out = np.concatenate(
            [mean / np.linalg.norm(mean, axis=1, keepdims=True), np.sign(change)[:, None]], 1
        )
        return self.unit(out)

    def text(self, ids: np.ndarray) -> np.ndarray:
        out = np.zeros((len(ids), 4))
        for word in range(3):
            out[:, word] = (ids == word + 1).any(1)
        out[:, 3] = (ids == 4).any(1) * 1.0 - (ids == 5).any(1)
        return self.unit(out)

    def unit(self, out: np.ndarray) -> np.ndarray:
        out = np.concatenate([out, np.full((len(out), 1), 0.1)], 1)
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def write_video(path: Path, actions: Sequence[tuple[int, int]], size: int = 32) -> None:
    """One second an action (colour, verb) in H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10"}
        for colour, verb in actions:
            ramp = np.linspace(80, 240, FPS)[:: 1 if verb == 0 else -1]
            for level in ramp:
                frame = np.full((size, size, 3), 10, np.uint8)
                frame[..., colour] = round(level)
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def actions(video: int) -> list[tuple[int, int]]:
    """All six actions, in an order of its own for each video."""
    order = np.random.default_rng(video).permutation(6)
    return [(int(i) // 2, int(i) % 2) for i in order]


def narration(action: tuple[int, int]) -> str:
    return f"{COLOURS[action[0]]} {VERBS[action[1]]}"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of six actions with EPIC, EgoMCQ and manifest annotations."""
    root = tmp_path_factory.mktemp("world")
    rows, plain, first = [], [], {}
    for number, name in enumerate(VIDEOS):
        write_video(root / "videos" / "P01" / f"{name}.mp4", actions(number))
        for place, action in enumerate(actions(number)):
            key, text = f"{name}_{place}", narration(action)
            first.setdefault(text, key)
            rows.append([key, "P01", name, f"00:00:{place:02d}.00", f"00:00:{place + 1:02d}.00", text])
            rows[-1] += [VERBS[action[1]], action[1], COLOURS[action[0]], action[0], f"[{action[0]}]"]
            plain.append([f"P01/{name}.mp4", place, place + 1, text])
    header = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb,verb_class,noun,noun_class,"
    write_csv(root / "test.csv", [(header + "all_noun_classes").split(","), *rows])
    sentences = [[key, text] for text, key in first.items()]
    write_csv(root / "test_sentence.csv", [["narration_id", "narration"], *sentences])
    write_csv(root / "videos" / "manifest.csv", [["path", "start", "end", "text"], *plain])
    (root / "egomcq.json").write_text(json.dumps(questions()))
    return root


def write_csv(path: Path, rows: Sequence[Sequence]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def questions() -> dict:
    """Two inter questions and six intra ones; intra choices are five of the six actions of a video."""

    def clip(video: int, place: int) -> dict:
        text = narration(actions(video)[place])
        return {"video_uid": VIDEOS[video], "clip_start": place, "clip_end": place + 1, "clip_text": text}

    out = {}
    for answer, action in enumerate([(0, 0), (1, 1)]):
        picks = [actions(v).index(action if v == answer else (2, answer)) for v in range(5)]
        choices = {str(v): clip(v, place) for v, place in enumerate(picks)}
        out[f"inter{answer}"] = {
            "answer": answer,
            "query": choices[str(answer)],
            "choices": choices,
            "types": 1,
        }
    for skip in range(6):
        choices = {str(i): clip(0, place) for i, place in enumerate(p for p in range(6) if p != skip)}
        out[f"intra{skip}"] = {
            "answer": skip % 5,
            "query": choices[str(skip % 5)],
            "choices": choices,
            "types": 2,
        }
    return out


@pytest.fixture(scope="session")
def fake() -> type[FakeEncoders]:
    return FakeEncoders


@pytest.fixture(scope="session")
def video_writer():
    return write_video


@pytest.fixture(scope="session")
def csv_writer():
    return write_csv
