"""Commands on a weights folder: embed, search, eval and diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from stvl.cli.main import main
from stvl.eval.embed import load_npz
from stvl.pretrained.compare import random_inputs, run_activations
from stvl.pretrained.encoders import load_weights
from tests.fixtures import SIZE, TrainedRun, shrunk_model
from tests.pretrained.small import random_tree, write

MODEL = shrunk_model()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "weights"
    write(folder, MODEL, random_tree(MODEL), frames=2)
    return folder


@pytest.fixture(scope="module")
def other(weights: Path) -> Path:
    """The same but for one number in the second block of the video tower."""
    params = random_tree(MODEL)
    kernel = params["video"]["stack"]["layers"]["attention"]["value"]["kernel"]
    params["video"]["stack"]["layers"]["attention"]["value"]["kernel"] = kernel.at[1, 3, 0, 2].add(4.0)
    write(weights.with_name("other"), MODEL, params, frames=2)
    return weights.with_name("other")


def error(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    assert main([str(arg) for arg in argv]) == 1
    return capsys.readouterr().err


def test_images_are_clips_of_one_frame(weights, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (2, SIZE, 2 * SIZE, 3), np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    out, files = tmp_path / "out.npz", [str(tmp_path / f"{number}.png") for number in range(2)]
    assert main(["embed", "--weights", str(weights), "--image", *files, "--out", str(out)]) == 0
    made, encoders = load_npz(out), load_weights(weights, frames=1)
    # The folder's own rule squashes.
    wanted = encoders.video(np.stack([encoders.transform(picture[None]) for picture in pictures]))
    np.testing.assert_allclose(made.embeddings, wanted, atol=1e-6)
    assert made.card["resize"] == f"whole frame squashed to {SIZE}x{SIZE} (bicubic)"


def test_texts_and_videos(weights, tiny_world, tmp_path):
    out = tmp_path / "out.npz"
    assert main(["embed", "--weights", str(weights), "--text", "a red ball", "a cat", "--out", str(out)]) == 0
    encoders = load_weights(weights)
    wanted = encoders.text(encoders.tokenizer(["a red ball", "a cat"]))
    np.testing.assert_allclose(load_npz(out).embeddings, wanted, atol=1e-6)
    video = str(next((tiny_world / "videos").rglob("*.mp4")))
    command = ["embed", "--weights", str(weights), "--video", video, "--out", str(out)]
    assert main(command) == 0
    two = load_npz(out)
    assert two.card["frames"] == 2
    assert main([*command, "--frames", "4"]) == 0
    assert load_npz(out).card["frames"] == 4
    assert np.abs(load_npz(out).embeddings - two.embeddings).max() > 1e-6


def test_what_does_not_go_together(weights, tiny_run: TrainedRun, tmp_path, capsys):
    text = ["embed", "--text", "a", "--out", tmp_path / "x.npz"]
    assert "not both" in error(capsys, *text, "--weights", weights, "--run", tiny_run.folder)
    assert "name it with --run" in error(capsys, *text, "--weights", tiny_run.folder)
    assert "name it with --weights" in error(capsys, *text, "--run", weights)
    assert "is no folder; `stvl convert SRC --out DIR`" in error(capsys, *text, "--weights", "nowhere")
    image = ["embed", "--weights", weights, "--out", tmp_path / "x.npz", "--image", "none.png"]
    assert "images are clips of one frame: leave --frames 3 out" in error(capsys, *image, "--frames", "3")
    assert "none.png: there is no such file" in error(capsys, *image)
    assert "give one of" in error(capsys, *image, "--text", "a")
    assert not (tmp_path / "x.npz").exists()


def test_protocols_name_the_weights(weights, tiny_world, tmp_path, capsys):
    csv, videos = f"{tiny_world}/EPIC_100_retrieval_test.csv", f"{tiny_world}/videos"
    sentences = f"{tiny_world}/EPIC_100_retrieval_test_sentence.csv"
    out = tmp_path / "mir.json"
    mir = [
        "eval",
        "mir",
        "--annotations",
        csv,
        "--sentences",
        sentences,
        "--videos",
        videos,
        "--out",
        str(out),
    ]
    assert main([*mir, "--weights", str(weights)]) == 0
    card = json.loads(out.read_text())["card"]
    assert card["model"]["source"] == {"name": "a.safetensors", "sha256": "ab" * 32, "layout": "small/own"}
    assert card["weights_sha256"] == load_weights(weights).weights_sha256
    out = tmp_path / "mcq.json"
    mcq = [
        "eval",
        "egomcq",
        "--json",
        f"{tiny_world}/egomcq.json",
        "--videos",
        f"{videos}/P02",
        "--out",
        str(out),
    ]
    assert main([*mcq, "--weights", str(weights)]) == 0
    assert json.loads(out.read_text())["card"]["model"]["source"]["layout"] == "small/own"
    assert "give saved --scores or a model" in error(capsys, *mcq, "--scores", "a.npy", "--weights", weights)


def test_results_lie_in_the_weights_folder_and_do_not_spoil_it(weights, tiny_world):
    command = [
        "eval",
        "egomcq",
        "--json",
        f"{tiny_world}/egomcq.json",
        "--videos",
        f"{tiny_world}/videos/P02",
    ]
    assert main([*command, "--weights", str(weights)]) == 0
    assert (weights / "results" / "EgoMCQ.json").is_file()
    assert load_weights(weights).frames == 2


def test_search_with_weights(weights, tiny_world, tmp_path, capsys):
    command = ["search", "a ball", "--weights", weights, "--build", tiny_world / "videos" / "P02"]
    assert main([str(arg) for arg in [*command, "--window", "0.5", "--stride", "0.5", "--top", "2"]]) == 0
    assert "a ball" in capsys.readouterr().out


def test_diff_of_equal_weights(weights, capsys):
    assert main(["diff", str(weights), str(weights)]) == 0
    out = capsys.readouterr().out
    assert "activations agree within 0.0001" in out
    count = len(jax.tree.leaves(random_tree(MODEL)))
    assert f"parameters: {count} equal bit by bit, 0 differ" in out


def test_diff_names_the_first_bad_block(weights, other, tmp_path, capsys):
    assert main(["diff", str(weights), str(other), "--json", str(tmp_path / "d.json")]) == 1
    out = capsys.readouterr().out
    assert "first bad: video/blocks/1 (relative difference" in out
    assert "video/stack/layers/attention/value/kernel" in out and "layers 1" in out
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["first_bad"] == "video/blocks/1"
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["video/blocks/0"]["max_abs"] == 0 and rows["video/blocks/1"]["cosine"] < 1
    assert [row["path"] for row in found["parameters"]] == ["video/stack/layers/attention/value/kernel"]
    assert main(["diff", str(weights), str(other), "--threshold", "1e9"]) == 0
    capsys.readouterr()
    assert main(["diff", str(weights), str(other), "--params", "--threshold", "1e9"]) == 1
    assert "activations" not in capsys.readouterr().out


def test_diff_with_stored_activations(weights, other, tmp_path, capsys):
    inputs = random_inputs(MODEL, 2, batch=1, seed=5)
    stored: dict[str, Any] = run_activations(MODEL, random_tree(MODEL), inputs)
    # A source keeps patches in one axis, and may leave parts out.
    stored["video/stem"] = stored["video/stem"].reshape(1, -1, 32)
    del stored["text/norm"]
    given: dict[str, Any] = {"input/video": inputs["video"], "input/text": inputs["text"]}
    np.savez(tmp_path / "reference.npz", **stored, **given)
    np.savez(tmp_path / "bare.npz", **stored)
    np.savez(tmp_path / "given.npz", **given)
    reference, bare = str(tmp_path / "reference.npz"), str(tmp_path / "bare.npz")
    assert main(["diff", str(weights), reference]) == 0
    assert "only in A: text/norm" in capsys.readouterr().out
    assert main(["diff", str(other), reference]) == 1
    assert "first bad: video/blocks/1" in capsys.readouterr().out
    assert "holds no input/video and no input/text" in error(capsys, "diff", weights, bare)
    assert main(["diff", str(weights), bare, "--inputs", str(tmp_path / "given.npz")]) == 0
    assert main(["diff", bare, reference]) == 0
    assert "leave --params out" in error(capsys, "diff", weights, reference, "--params")
    assert "two files of activations need no --inputs" in error(capsys, "diff", bare, bare, "--inputs", bare)


def test_diff_of_a_run_and_weights(weights, tiny_run: TrainedRun, capsys):
    assert main(["diff", str(tiny_run.folder), str(weights)]) == 1
    assert "first bad: video/stem" in capsys.readouterr().out
