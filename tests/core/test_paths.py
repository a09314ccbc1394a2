"""Text to paths: on a disk, in a bucket, and neither."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from etils import epath

from stvl.core.errors import ConfigError
from stvl.core.paths import absolute, files_below, is_remote, make_folder, on_disk, reach, to_path


@pytest.mark.parametrize("text", ["runs/x", "/mnt/runs/x", ".", "gs", "a:b/c"])
def test_a_path_on_a_disk_is_pathlibs(text):
    path = to_path(text)
    assert path == Path(text) and not is_remote(path)
    assert to_path(path) is path
    assert reach(path) is path
    assert absolute(path) == Path(text).absolute()
    assert on_disk(text, "x") == Path(text)


def test_a_path_in_a_bucket_keeps_its_slashes():
    path = to_path("gs://bucket/runs/x")
    assert str(path / "log.jsonl") == "gs://bucket/runs/x/log.jsonl"
    assert isinstance(path, epath.Path) and is_remote(path)
    assert to_path(path) is path
    assert str(absolute(path)) == "gs://bucket/runs/x"
    assert (path.name, str(path.parent)) == ("x", "gs://bucket/runs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "s3://bucket/run",
            r"s3://bucket/run: folders lie on a disk or .*; s3:// is not supported: mount it",
        ),
        ("https://host/run", "https:// is not supported"),
        ("file:///run", "file:// is not supported"),
        ("gs://", "names no bucket, expected gs://BUCKET/FOLDER"),
        ("gs:///run", "names no bucket"),
        (
            Path("gs://bucket/run"),
            r"pathlib has made 'gs:/bucket/run' of an address with '//': pass the text",
        ),
    ],
)
def test_other_addresses_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        to_path(text)


def test_without_gcsfs_the_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    with pytest.raises(ConfigError, match=r"gs://b/x is read and written .*: pip install 'stvl\[gcs\]'"):
        to_path("gs://b/x")
    assert to_path("b/x") == Path("b/x")


@pytest.mark.parametrize("given", ["gs://bucket/x", Path("gs://bucket/x")])
def test_what_belongs_on_a_disk_is_refused_in_a_bucket(given):
    with pytest.raises(ConfigError, match="x: records are kept on a disk"):
        on_disk(given, "records are kept on a disk")


def test_a_bucket_is_looked_at_before_it_is_used(bucket):
    path = to_path(f"gs://{bucket}/run")
    assert reach(path) is path
    with pytest.raises(
        ConfigError, match=r"gs://none/run: the bucket none cannot be seen \(FileNotFoundError: "
    ):
        reach(to_path("gs://none/run"))


def test_files_below_a_folder(gcs, bucket, tmp_path):
    for root in (tmp_path, to_path(f"gs://{bucket}/a")):
        for name in ("x", "b/y", "b/c/z"):
            make_folder((root / name).parent)
            (root / name).write_text(name)
        found = {path.relative_to(root).as_posix(): path.read_text() for path in files_below(root)}
        assert found == {"x": "x", "b/y": "b/y", "b/c/z": "b/c/z"}
    # A folder of a bucket is a name with slashes, nothing else.
    assert gcs.names(bucket) == ["a/b/c/z", "a/b/y", "a/x"]


def test_what_others_write_is_seen_at_once(gcs, bucket):
    folder = to_path(f"gs://{bucket}/run")
    (folder / "a").write_text("1")
    assert [path.name for path in folder.iterdir()] == ["a"]
    # Another process, or tensorstore in this one: gcsfs takes no part in it.
    gcs.put(bucket, "run/a", b"longer", "text/plain", {})
    gcs.put(bucket, "run/b", b"", "text/plain", {})
    assert [path.name for path in folder.iterdir()] == ["a", "b"]
    assert (folder / "a").read_text() == "longer"
    gcs.delete(bucket, "run/a", {})
    assert not (folder / "a").exists()
