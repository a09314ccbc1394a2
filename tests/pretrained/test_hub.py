"""Names of repositories on the Hugging Face hub, with a module in the place of its client."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.pretrained.convert import ConvertOptions, convert, locate
from tests.pretrained.twins import eva02_shapes, save, state


@pytest.fixture(scope="module")
def eva_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return save(tmp_path_factory.mktemp("eva") / "eva02.safetensors", state(eva02_shapes()))


class FakeHub:
    """Answers as huggingface_hub does, from a folder."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root, self.files, self.asked = root, files, []

    def module(self) -> types.ModuleType:
        made = types.ModuleType("huggingface_hub")
        made.HfApi = lambda: self  # type: ignore[attr-defined]
        made.hf_hub_download = self.download  # type: ignore[attr-defined]
        return made

    def model_info(self, repo: str, revision: str | None = None) -> Any:
        if repo != "laion/twin":
            raise RuntimeError("401 no such repository")
        siblings = [types.SimpleNamespace(rfilename=name) for name in self.files]
        return types.SimpleNamespace(sha="c0ffee" + (revision or ""), siblings=siblings)

    def download(self, repo: str, file: str, revision: str) -> str:
        self.asked.append((repo, file, revision))
        return str(self.root / file)


@pytest.fixture
def hub(eva_file: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(eva_file.parent, [eva_file.name, "README.md"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake.module())
    return fake


def test_a_name_on_the_hub_is_fetched_at_one_commit_and_recorded(hub, eva_file, tmp_path):
    report = convert("laion/twin@v1", tmp_path / "w")
    assert hub.asked == [("laion/twin", "eva02.safetensors", "c0ffeev1")]
    source = json.loads((tmp_path / "w/config.json").read_text())["source"]
    expected = {
        "repo": "laion/twin",
        "revision": "c0ffeev1",
        "file": "eva02.safetensors",
        "sha256": report.sha256,
    }
    assert {key: source[key] for key in expected} == expected
    with pytest.raises(WeightsError, match="is not the expected file"):
        convert("laion/twin:eva02.safetensors", tmp_path / "x", ConvertOptions(sha256="1" * 64))


def test_a_local_path_comes_first(hub, eva_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "laion").mkdir()
    save(tmp_path / "laion/twin", {"x": np.zeros(3, np.float32)})
    assert locate("laion/twin") == (Path("laion/twin"), {})
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        (
            "laion/other",
            ["a.safetensors"],
            "the Hugging Face hub did not give it: RuntimeError: 401 no such repository",
        ),
        (
            "laion/twin:b.safetensors",
            ["a.safetensors"],
            r"has no file 'b.safetensors' \(did you mean 'a.safetensors'",
        ),
        (
            "laion/twin",
            ["a.safetensors", "b.bin"],
            "Files with weights: a.safetensors, b.bin. Name one as laion/twin:FILE",
        ),
        ("laion/twin", ["README.md"], "Files with weights: none"),
        ("weights/eva02.safetensors", [], "there is no file or folder 'weights/eva02.safetensors'"),
        ("./laion/twin", [], "there is no file or folder './laion/twin'"),
    ],
)
def test_names_that_lead_nowhere(name, files, said, hub):
    hub.files = files
    with pytest.raises(WeightsError, match=said):
        locate(name)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (
            ["pytorch_model.bin", "open_clip_model.safetensors", "model.safetensors"],
            "open_clip_model.safetensors",
        ),
        (["pytorch_model.bin", "open_clip_pytorch_model.bin"], "open_clip_pytorch_model.bin"),
        (["sub/only.npz", "README.md"], "sub/only.npz"),
    ],
)
def test_the_file_with_both_towers_is_taken(files, taken, hub):
    hub.files = files
    assert locate("laion/twin")[1]["file"] == taken


def test_all_shards_of_an_index_are_fetched(hub):
    index = "model.safetensors.index.json"
    (hub.root / index).write_text(
        json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})
    )
    hub.files = [index, "m-1.safetensors", "m-2.safetensors"]
    path, facts = locate("laion/twin")
    assert [file for _, file, _ in hub.asked] == [index, "m-1.safetensors", "m-2.safetensors"]
    assert path == hub.root and facts["file"] == index
    hub.files = hub.files[:2]
    with pytest.raises(WeightsError, match=r"names 'm-2\.safetensors', which is not there"):
        locate("laion/twin")
    (hub.root / index).unlink()


def test_without_the_hub_package_the_way_by_hand_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        WeightsError, match=r"pip install 'stvl\[hub\]'. Or download the file with any other tool"
    ):
        locate("laion/twin")
