"""What `stvl doctor --distributed` looks at, one process and one check at a time."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stvl.core.errors import ConfigError
from stvl.dist import health
from stvl.dist.health import Probe, bounded, examine
from stvl.dist.peers import PeersError
from stvl.dist.place import Distributed


def test_a_check_has_its_value_its_error_or_no_more_time():
    assert bounded(lambda: 5, 5.0)["value"] == 5
    failed = bounded(lambda: [][1], 5.0)
    assert failed["ok"] is False and failed["error"] == "IndexError: list index out of range"
    never = threading.Event()
    late = bounded(lambda: never.wait(20), 0.1)
    never.set()
    assert late["ok"] is False and late["error"] == "no answer within 0 s" and 0.1 <= late["seconds"] < 5


def test_the_sum_over_all_devices():
    import jax

    count = jax.device_count()
    assert health._psum() == count * (count + 1) / 2


def test_probes_of_a_shared_folder(tmp_path):
    folder = tmp_path / "new/runs"
    first, second = (Probe(str(folder), "t", number) for number in (0, 1))
    assert first.write() == second.write() == str(folder)
    assert second.see_first() and len(list(folder.iterdir())) == 2
    first.clean()
    second.clean()
    second.clean()
    assert list(folder.iterdir()) == []


def test_probes_of_a_bucket(gcs, bucket):
    folder = f"gs://{bucket}/new/runs"
    first, second = (Probe(folder, "t", number) for number in (0, 1))
    assert first.write() == second.write() == folder
    assert second.see_first()
    assert gcs.names(bucket) == ["new/runs/.stvl-probe-t-0", "new/runs/.stvl-probe-t-1"]
    first.clean()
    second.clean()
    second.clean()
    assert gcs.names(bucket) == []
    with pytest.raises(ConfigError, match="gs://none/runs: the bucket none cannot be seen"):
        Probe("gs://none/runs", "t", 0).write()


def test_probes_of_folders_that_are_not_the_same(tmp_path):
    Probe(str(tmp_path / "a"), "t", 0).write()
    other = Probe(str(tmp_path / "b"), "t", 1)
    other.write()
    with pytest.raises(OSError, match="No such file"):
        other.see_first()
    (tmp_path / "b/.stvl-probe-t-0").write_text("of an older start")
    with pytest.raises(OSError, match="process 0's file reads 'of an older start'"):
        other.see_first()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"(?i)exists|not a directory"):
        Probe(str(tmp_path / "file"), "t", 0).write()


def row(number: int, local: int = 4, total: int = 8, processes: int = 2, **stages: Any) -> dict[str, Any]:
    devices = {"local": local, "all": total, "processes": processes, "kind": "TPU v5e", "platform": "tpu"}
    good = {"ok": True, "seconds": 0.1}
    found = {"devices": {**good, "value": devices}, "psum": {**good, "value": 36.0}, **stages}
    return {"process": number, "host": f"h{number}", "arrived": True, "versions": {}, "stages": found}


def test_no_problem_where_all_agree():
    assert health._problems([row(0), row(1)], 2, False) == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [row(0), row(1, total=4)],
            ["process 1 sees 4 devices of 2 processes; the processes have 8 devices together"],
        ),
        ([row(0, processes=1), row(1)], ["process 0 sees 8 devices of 1 processes"]),
        (
            [row(0, local=5), row(1, local=3)],
            ["different numbers of devices: 5 on process 0, 3 on process 1"],
        ),
        (
            [row(0), row(1, psum={"ok": False, "seconds": 9.0, "error": "no answer within 9 s"})],
            ["process 1 (h1), a sum over all devices: no answer within 9 s"],
        ),
        ([row(0), {**row(1), "stages": {}}], ["process 1 (h1) did not report what it found"]),
        (
            [row(0), row(1, see={"ok": False, "seconds": 0.0, "error": "FileNotFoundError: x"})],
            [
                "process 1 (h1), reading process 0's file: FileNotFoundError: x",
                "one folder that every process sees",
            ],
        ),
    ],
)
def test_problems_name_the_process_and_the_check(rows, told):
    found = health._problems(rows, 2, True)
    assert len(found) == len(told)
    assert [text in line for text, line in zip(told, found, strict=True)] == [True] * len(told), found


def test_one_process_is_examined_too(tmp_path):
    found = examine(Distributed(cluster="none"), str(tmp_path), 60.0)
    assert not isinstance(found, bool)
    assert (found.processes, found.source, found.problems) == (1, "one process", ())
    assert [name for name, outcome in found.rows[0]["stages"].items() if outcome["ok"]] == [
        *["devices", "psum", "write", "see", "clean"]
    ]


def test_a_start_that_fails_is_a_finding_of_process_0(monkeypatch):
    facts = {0: {"host": "a", "same": {"jax": "1"}}, 2: {"host": "c", "same": {"jax": "2"}}}

    def fail(*words: Any, **more: Any) -> None:
        raise PeersError("1 of 3 processes did not arrive", 76, facts)

    monkeypatch.setattr(health, "start", fail)
    found = examine(Distributed(coordinator="a:1", processes=3, process=0))
    assert not isinstance(found, bool)
    assert [each["arrived"] for each in found.rows] == [True, False, True]
    assert found.problems == ("1 of 3 processes did not arrive", "jax: 1 on process 0; 2 on process 2")
    with pytest.raises(PeersError):
        examine(Distributed(coordinator="a:1", processes=3, process=1))
