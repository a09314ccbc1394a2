"""The launch scripts: the exact commands that they print, manifests that parse, and two real processes on this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.fixtures import ROOT

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
#: Words that a shell would take apart or run.
WORDS = ["train", "a b.py", "x=$(id)", "it's", "@NAME@"]


def script(name: str, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a launch script from another folder than the checkout."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("STVL", "SLURM"))}
    return subprocess.run(
        ["bash", str(ROOT / "launch" / name), *words],
        cwd=ROOT.parent,
        env=variables | {"STVL": "stvl", "XLA_FLAGS": ""} | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def shown(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The words of the commands that a dry run prints."""
    assert done.returncode == 0, done.stderr
    return [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_errors(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if path.name != "common.sh":
        assert "\nset -euo pipefail\n" in path.read_text()


@pytest.mark.parametrize("name", ["local.sh", "tpu_vm.sh", "gke.sh"])
def test_help_and_mistakes(name):
    done = script(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"bash launch/{name}")
    for words, said in [
        (["--nosuch"], "unknown argument --nosuch"),
        (["--"], "no command after --|needed"),
        (
            ["--zone"] if name == "tpu_vm.sh" else ["--name"] if name == "gke.sh" else ["--fake"],
            "needs a value",
        ),
    ]:
        done = script(name, *words)
        assert done.returncode == 2 and re.search(said, done.stderr), done.stderr


def test_local_prints_each_process():
    done = script("local.sh", "-n", "2", "--fake", "4", "--port", "5001", "--dry-run", "--", *WORDS)
    both = [
        "JAX_PLATFORMS=cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo",
        "XLA_FLAGS=--xla_force_host_platform_device_count=4",
        "stvl",
        *WORDS,
    ]
    head = ["env", "STVL_COORDINATOR=127.0.0.1:5001", "STVL_PROCESSES=2"]
    assert shown(done) == [[*head, f"STVL_PROCESS={number}", *both] for number in (0, 1)]
    gpus = shown(script("local.sh", "-n", "3", "--gpus", "--port", "5001", "--dry-run", "--", "doctor"))
    assert [words[-3:] for words in gpus] == [
        [f"CUDA_VISIBLE_DEVICES={number}", "stvl", "doctor"] for number in range(3)
    ]


def test_local_refuses_what_excludes_each_other():
    done = script("local.sh", "--gpus", "--fake", "2", "--", "doctor")
    assert done.returncode == 2 and "--gpus and --fake exclude each other" in done.stderr
    done = script("local.sh", "-n", "two", "--", "doctor")
    assert done.returncode == 2 and "a whole number above 0 is needed, found two" in done.stderr


def test_tpu_vm_quotes_for_the_shell_of_the_worker(tmp_path):
    name = ["--name", "pod", "--zone", "us-east5-b", "--project", "p", "--dir", "my stvl", "--set", "A=b c"]
    (words,) = shown(script("tpu_vm.sh", *name, "--dry-run", "--", *WORDS))
    remote = words.pop(8)
    assert words == [
        *["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-east5-b", "--worker=all"],
        "--project=p",
    ]
    # What a worker's shell makes of it, with a stand-in for stvl that prints its words.
    (tmp_path / "my stvl/.venv/bin").mkdir(parents=True)
    program = tmp_path / "my stvl/.venv/bin/stvl"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$A" "$@"\n')
    program.chmod(0o755)
    command = remote.removeprefix("--command=")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["b c", *WORDS]


def test_tpu_vm_runs_what_it_prints(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 5\n')
    gcloud.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = script("tpu_vm.sh", "--name", "pod", "--zone", "z", "--", "doctor", "--distributed", env=path)
    first, *rest = done.stdout.splitlines()
    assert done.returncode == 5
    assert shlex.split(first) == ["$", "gcloud", *rest]
    assert rest[-1] == "--command=cd stvl && exec env .venv/bin/stvl doctor --distributed"


def test_tpu_vm_setup():
    (words,) = shown(script("tpu_vm.sh", "--name", "p", "--zone", "z", "--setup", "--dry-run"))
    assert words[-1] == (
        "--command=cd stvl && python3 -m venv .venv && "
        ".venv/bin/python -m pip install -c constraints.txt -e .\\[tpu\\,gcs\\]"
    )
    done = script("tpu_vm.sh", "--name", "p", "--zone", "z", "--setup", "--", "doctor")
    assert done.returncode == 2 and "--setup takes no command" in done.stderr


@pytest.mark.parametrize(
    ("status", "queued"), [(0, False), (1, False), (75, True), (76, True), (77, True), (137, False)]
)
def test_slurm_runs_what_it_prints_and_queues_again(tmp_path, status, queued):
    for name, text in [
        ("srun", f'printf "%s\\n" "$@"\nexit {status}\n'),
        ("scontrol", 'echo "scontrol $*"\n'),
    ]:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}")
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "42",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    done = script("slurm.sbatch", *WORDS, env=env)
    lines = done.stdout.splitlines()
    assert done.returncode == status
    assert shlex.split(lines[0]) == ["$", "srun", "--kill-on-bad-exit=0", "stvl", *WORDS]
    assert lines[1:7] == ["--kill-on-bad-exit=0", "stvl", *WORDS[:4]]
    assert ("scontrol requeue 42" in lines) is queued


def test_slurm_dry_run_and_directives():
    done = script("slurm.sbatch", "--dry-run", "doctor", "--distributed", env={"STVL": ""})
    assert shown(done) == [
        ["srun", "--kill-on-bad-exit=0", f"{ROOT.parent}/.venv/bin/stvl", "doctor", "--distributed"]
    ]
    assert script("slurm.sbatch").returncode == 2
    text = (ROOT / "launch/slurm.sbatch").read_text()
    directives = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(.+))?$", text, re.MULTILINE)
    assert dict(directives)["--signal"] == "TERM@180" and dict(directives)["--ntasks-per-node"] == "1"


GKE = ["--name", "ego", "--image", "eu-docker.pkg.dev/p/r/i:1", "--accelerator", "tpu-v5-lite-podslice"]


def test_gke_renders_a_job_set():
    words = [
        *GKE,
        "--topology",
        "16x16",
        "--slices",
        "2",
        "--claim",
        "runs",
        "--dry-run",
        "--",
        *WORDS,
        'a"b\\',
    ]
    done = script("gke.sh", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("$ kubectl apply -f -")
    found = yaml.safe_load(done.stdout)
    assert (found["kind"], found["metadata"]["name"]) == ("JobSet", "ego")
    (group,) = found["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert (group["replicas"], job["parallelism"], job["completions"]) == (2, 64, 64)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    (container,) = pod["containers"]
    # $$( is how Kubernetes spells a $( that it leaves alone.
    assert container["command"] == ["stvl", "train", "a b.py", "x=$$(id)", "it's", "@NAME@", 'a"b\\']
    assert container["resources"] == {kind: {"google.com/tpu": 4} for kind in ("requests", "limits")}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/mnt/shared"}]
    # Kubernetes takes rules of exit codes only for pods that are never restarted in place.
    assert pod["restartPolicy"] == "Never"
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2, 3, 4]


def test_the_template_is_yaml_by_itself():
    found = yaml.safe_load(re.sub(r"@([A-Z]+)@", r"\1", (ROOT / "launch/gke_jobset.yaml").read_text()))
    assert found["apiVersion"] == "jobset.x-k8s.io/v1alpha2"


def test_gke_applies_what_it_prints(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncat > {tmp_path}/manifest\n')
    kubectl.chmod(0o755)
    words = [*GKE, "--topology", "2x4", "--chips", "8", "--", "doctor", "--distributed"]
    done = script("gke.sh", *words, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "words").read_text() == "apply -f -\n"
    assert (tmp_path / "manifest").read_text() == done.stdout
    assert yaml.safe_load(done.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 1


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--name", 'e"\nkind: Secret', "--name is small letters, digits and dashes"),
        ("--image", "a b", "--image is the name of an image"),
        ("--topology", "16", "--topology is two or three numbers"),
        ("--topology", "3x3", "3x3 has 9 chips, which are no multiple of 4 a host"),
        ("--slices", "0", "--chips and --slices are at least 1"),
        ("--claim", "a,b", "--claim is small letters"),
    ],
)
def test_gke_lets_nothing_into_the_manifest_that_is_no_name(option, value, said):
    done = script("gke.sh", *GKE, "--topology", "4x4", option, value, "--dry-run", "--", "doctor")
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""


# ---- Real processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> str:
    """An executable `stvl` that runs this checkout with this Python; the scripts unset PYTHONPATH."""
    path = tmp_path / "stvl"
    path.write_text(f'#!/bin/sh\ncd "{ROOT}"\nexec "{sys.executable}" -u -m stvl "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_local_doctor_on_two_processes_of_two_devices(tmp_path, program):
    words = [
        "doctor",
        "--distributed",
        "--checkpoint",
        str(tmp_path / "runs"),
        "--json",
        str(tmp_path / "health.json"),
    ]
    done = script(
        "local.sh", "-n", "2", "--fake", "2", "--logs", str(tmp_path), "--", *words, env={"STVL": program}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 arrived (options)" in done.stdout and "all is well" in done.stdout
    found = json.loads((tmp_path / "health.json").read_text())
    assert (found["processes"], found["problems"]) == (2, [])
    for number, row in enumerate(found["rows"]):
        stages = row["stages"]
        assert (row["process"], row["host"]) == (number, socket.gethostname())
        assert stages["devices"]["value"]["local"] == 2 and stages["devices"]["value"]["all"] == 4
        assert stages["psum"]["value"] == 1 + 2 + 3 + 4
        assert stages["see"]["value"] is True
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_local_passes_an_error_of_one_process_on(tmp_path, program):
    # Process 1 asks for other devices than process 0 may start: it fails before it arrives.
    text = f'#!/bin/sh\nif [ "$STVL_PROCESS" = 1 ]; then echo went wrong; exit 9; fi\nexec "{program}" "$@"\n'
    (tmp_path / "one").write_text(text)
    (tmp_path / "one").chmod(0o755)
    words = [
        "-n",
        "2",
        "--fake",
        "1",
        "--logs",
        str(tmp_path),
        "--",
        "doctor",
        "--distributed",
        "--start-timeout",
        "3",
    ]
    done = script("local.sh", *words, env={"STVL": str(tmp_path / "one")})
    assert done.returncode == 1
    assert "1 of 2 processes did not arrive within 3 s: process 1" in done.stdout
    assert "process 1 ended with status 9" in done.stderr and "[process 1] went wrong" in done.stderr


def test_local_passes_a_signal_on(tmp_path):
    program = tmp_path / "stvl"
    text = "#!/bin/bash\ntrap 'exit 75' TERM\ntouch \"$1/$STVL_PROCESS\"\nwhile true; do sleep 0.1; done\n"
    program.write_text(text)
    program.chmod(0o755)
    command = ["bash", str(ROOT / "launch/local.sh"), "--logs", str(tmp_path), "--", str(tmp_path)]
    running = subprocess.Popen(
        command, env=os.environ | {"STVL": str(program)}, text=True, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 75
    assert "process 0 ended with status 75" in errors and "process 1 ended with status 75" in errors


CHILD = """
import sys, time
from stvl.dist.place import Distributed
from stvl.dist.start import start

place = dict(coordinator=sys.argv[1], processes=2, process=int(sys.argv[2]))
with start(Distributed(**place, peer_timeout=5.0, start_timeout=60.0)):
    import jax
    print("ready", jax.device_count(), flush=True)
    time.sleep(120)
"""


def pair(tmp_path: Path) -> list[subprocess.Popen[str]]:
    """Two processes under real `jax.distributed`, ready."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, address, str(number)],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=open(tmp_path / f"{number}.err", "w"),  # noqa: SIM115 - the child's
        )
        for number in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready 2\n"
    return started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "sent", "seconds", "said"),
    [
        (1, signal.SIGKILL, 6.0, "process 1 ({host}) is gone (end of stream)"),
        (0, signal.SIGKILL, 6.0, "process 0 ({host}), the coordinator, is gone (end of stream)"),
        # jax takes SIGTERM for itself when it starts; it has to end a process again.
        (1, signal.SIGTERM, 6.0, "process 1 ({host}) is gone (end of stream)"),
        (1, signal.SIGSTOP, 14.0, "process 1 ({host}) is gone (silent for 5 s)"),
    ],
)
def test_a_killed_process_ends_the_other_in_bounded_time(tmp_path, victim, sent, seconds, said):
    both = pair(tmp_path)
    try:
        begin = time.monotonic()
        both[victim].send_signal(sent)
        code = both[1 - victim].wait(60)
        taken = time.monotonic() - begin
    finally:
        for process in both:
            process.kill()
            process.communicate()
    errors = (tmp_path / f"{1 - victim}.err").read_text()
    assert taken < seconds
    if victim == 0 and code == -signal.SIGABRT:
        # jax ends a process itself when its coordinator is gone, where it is faster than the peers.
        assert "JAX distributed service detected fatal errors" in errors
    else:
        assert code == 76 and said.format(host=socket.gethostname()) in errors
