"""Which process of which job this is, from options, SLURM, GKE and a TPU VM's metadata."""

from __future__ import annotations

import pytest

from stvl.core.errors import ConfigError
from stvl.dist.place import Distributed, Place, expand_nodes, find_place, has_tpu

SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "gpu[08-10],big2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
GKE = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "w0,w1,w2,w3"}


def nothing(name: str) -> None:
    """A metadata server without attributes."""


def found(variables: dict[str, str], **options: object) -> Place | None:
    return find_place(Distributed(**options), variables, nothing)  # type: ignore[arg-type]


def test_one_process_anywhere():
    assert found({}) is None
    assert found({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "big2"}) is None
    assert found({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}) is None
    # A shell inside an allocation: the step's variables are missing.
    assert found({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}) is None


def test_cluster_none_starts_alone():
    variables = {**SLURM, **GKE, "STVL_COORDINATOR": "a:1", "STVL_PROCESSES": "2", "STVL_PROCESS": "0"}
    assert found(variables, cluster="none") is None


def test_options_come_before_variables_and_clusters():
    variables = {**SLURM, "STVL_COORDINATOR": "a:1", "STVL_PROCESSES": "3", "STVL_PROCESS": "1"}
    assert found(variables) == Place("a:1", 3, 1, "options")
    assert found(variables, coordinator="b:2", process=2) == Place("b:2", 3, 2, "options")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"coordinator": "a:1"},
            r"missing: --processes \(or STVL_PROCESSES\), --process \(or STVL_PROCESS\)",
        ),
        ({"coordinator": "a", "processes": 2, "process": 0}, "reads HOST:PORT, found 'a'"),
        ({"coordinator": ":80", "processes": 2, "process": 0}, "reads HOST:PORT, found ':80'"),
        ({"coordinator": "a:70000", "processes": 2, "process": 0}, "reads HOST:PORT"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "found process 2 of 2"),
        ({"cluster": "slurm"}, "start the program with srun"),
        ({"cluster": "gke"}, "GKE sets them in pods"),
        ({"cluster": "tpu-vm"}, "the metadata server does not tell"),
        ({"start_timeout": 0.0}, "timeouts are above 0 seconds, found start 0, peer 60"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        found({}, **options)


def test_a_variable_that_is_no_number():
    with pytest.raises(ConfigError, match="processes is a whole number, found 'two'"):
        found({"STVL_COORDINATOR": "a:1", "STVL_PROCESSES": "two", "STVL_PROCESS": "0"})


def test_slurm():
    place = found(SLURM)
    # 70001 modulo 4096 is 369, above 61440.
    assert place == Place("gpu08:61809", 4, 2, "SLURM", ("gpu08", "gpu09", "gpu10", "big2"), None)
    assert place.name(3) == "process 3 (big2)"


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "1"}, None),
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_slurm_with_several_tasks_a_node(changes, devices):
    variables = {**SLURM, "SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", **changes}
    place = found(variables)
    assert place is not None and place.local_devices == devices
    assert place.processes == int(changes.get("SLURM_STEP_NUM_TASKS", 8))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n1,m2", ["n1", "m2"]),
        ("n[01-03,7],gpu2", ["n01", "n02", "n03", "n7", "gpu2"]),
        ("a[8-11]-ib,b[2]", ["a8-ib", "a9-ib", "a10-ib", "a11-ib", "b2"]),
    ],
)
def test_node_lists(text, names):
    assert list(expand_nodes(text)) == names


def test_gke():
    assert found(GKE) == Place("w0:8482", 4, 1, "GKE", ("w0", "w1", "w2", "w3"))
    several = {
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "s0:80",
    }
    assert found({**GKE, **several}) == Place("s0:8482", 12, 9, "GKE")
    with pytest.raises(ConfigError, match="MEGASCALE_COORDINATOR_ADDRESS is not set"):
        found({**GKE, "MEGASCALE_NUM_SLICES": "3"})


@pytest.mark.parametrize(
    "endpoints", ["10.0.0.1,10.0.0.2", "unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2"]
)
def test_tpu_vm(endpoints):
    attributes = {"agent-worker-number": "1", "worker-network-endpoints": endpoints}
    place = find_place(Distributed(), {}, attributes.get)
    assert place == Place("10.0.0.1:8482", 2, 1, "TPU VM metadata", ("10.0.0.1", "10.0.0.2"))
    attributes["tpu-env"] = (
        "TYPE: 'V5'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.9.9.9'\n"
    )
    assert find_place(Distributed(), {}, attributes.get) == Place("10.9.9.9:8482", 4, 3, "TPU VM metadata")


def test_a_tpu_vm_of_one_worker_is_one_process():
    attributes = {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.1"}
    assert find_place(Distributed(), {}, attributes.get) is None


@pytest.mark.parametrize(
    ("vendor", "device", "there"),
    [("0x1ae0", "0x0063", True), ("0x1ae0", "0x0042", False), ("0x10de", "0x0063", False)],
)
def test_tpu_chips_are_told_from_network_cards(tmp_path, vendor, device, there):
    (tmp_path / "0000:00:05.0").mkdir()
    (tmp_path / "0000:00:05.0/vendor").write_text(vendor + "\n")
    (tmp_path / "0000:00:05.0/device").write_text(device + "\n")
    (tmp_path / "0000:00:06.0").mkdir()
    assert has_tpu(tmp_path) is there
