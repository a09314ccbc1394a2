"""A full device: the bytes by hand, remedies in their order, and that nothing else is touched."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import stvl.train.loop as loop
from stvl.cli.main import main
from stvl.core.errors import ConfigError
from stvl.dist.peers import Peers
from stvl.dist.place import Place
from stvl.dist.start import Started
from stvl.losses.infonce import InfoNCE
from stvl.plan import oom
from stvl.plan.analytic import Described, executed_flops, saved_bytes
from stvl.plan.need import Room, need, room, topology_of
from stvl.plan.oom import Memories, OutOfMemory, is_full
from stvl.plan.shrink import Case, allocator, remedies
from stvl.plan.topology import Topology, parse
from stvl.train.experiment import Experiment, load_experiment
from tests.fixtures import ROOT, tiny_experiment

MIB = 2**20
FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123456789 bytes."

CONFIG = """
from tests.fixtures import tiny_experiment


def experiment(world: str = "no"):
    return tiny_experiment(world)
"""


def error(text: str = FULL) -> Exception:
    return jax.errors.JaxRuntimeError(text)


def case(experiment: Experiment, limit: int, topology: Topology | None = None, whole: int = 0) -> Case:
    topology = topology or parse("cpu:8")
    now = need(experiment, topology)
    return Case(now, now.total, now.temp, topology, Room(limit, "made up", whole))


def test_the_need_of_a_tiny_step_by_hand():
    experiment = tiny_experiment("no")
    found = need(experiment, parse("cpu:8"))
    # 32 wide, 2 deep; 16 wide, 1 deep, 49,408 ids: counted by another way, the model's own shapes.
    from stvl.train.state import build

    model, _ = build(experiment)
    video, ids = jax.ShapeDtypeStruct((1, 2, 16, 16, 3), "uint8"), jax.ShapeDtypeStruct((1, 12), "int32")
    params = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), video, ids)["params"])
    count = sum(leaf.size for leaf in params)
    assert count > 49408 * 16
    # A whole copy on each of the eight devices: parameters, two moments, the average; one row of the batch each.
    assert found.state.params == found.state.ema == found.gradients == 4 * count
    assert 8 * count <= found.state.optimizer <= 8 * count + 64
    assert found.state.batch == 2 * 16 * 16 * 3 + 12 * 4 + 4 + 4 * 4
    # One row of eight similarities in f32, three times.
    assert (found.loss, found.form) == (3 * 4 * 8, "dense, 1 x 8 in f32")
    assert found.activations == saved_bytes(experiment, 1) > 0
    assert found.total == found.held + found.activations + found.gradients + found.loss
    assert found.cost == executed_flops(experiment) / 8


@pytest.mark.parametrize(
    ("loss", "topology", "form", "size"),
    [
        (InfoNCE(impl="chunked"), "cpu", "chunked, 256 x 1024 in f32", 3 * 4 * 256 * 1024),
        (InfoNCE(impl="chunked", chunk=100), "cpu", "chunked, 100 x 1024 in f32", 3 * 4 * 100 * 1024),
        (InfoNCE(impl="ring"), "cpu:8", "ring, 128 x 128 in f32", 3 * 4 * 128 * 128),
        (InfoNCE(chunk=64), "cpu:8", "ring, 64 x 128 in f32", 3 * 4 * 64 * 128),
        (InfoNCE(), "cpu:8", "dense, 128 x 1024 in f32", 3 * 4 * 128 * 1024),
    ],
)
def test_the_loss_takes_its_tile(loss, topology, form, size):
    loader = dataclasses.replace(tiny_experiment("no").loader, batch=1024)
    found = need(tiny_experiment("no", loss=loss, loader=loader), parse(topology))
    assert (found.form, found.loss) == (form, size)


def test_what_is_left_keeps_the_compilers_account():
    state = parse("cpu"), tiny_experiment("no")
    now = need(state[1], state[0])
    after = dataclasses.replace(now, activations=0, gradients=now.temp // 2, loss=0)
    # The compiler says 1000 of temporaries and 50 of code beside what the shardings hold; half of the temporaries go.
    found = Case(now, now.held + 1000 + 50, 1000, state[0], Room(1, "made up"))
    assert found.left(after) == pytest.approx(now.held + 500 + 50, abs=1)
    assert found.left(now) == found.total


def test_remedies_that_are_enough_come_first_and_the_cheapest_of_them_first():
    experiment = tiny_experiment("no")
    whole = case(experiment, 0)
    # Less than what remat saves, so that several are enough.
    found = remedies(case(experiment, whole.total - 1), count=9)
    assert all(one.fits and one.saves > 0 for one in found)
    worth = [one for one in found if one.saves > 0.01 * whole.total]
    # Slices of the state take no more FLOPs and leave the result; without an average there is nothing to evaluate with.
    assert [one.words[:2] for one in found[:2]] == [("mesh.data=1", "mesh.fsdp=8"), ("ema=none",)]
    assert worth == found[:2] and [one.same for one in worth] == [True, False]
    same = [one.slower for one in found[2:] if one.same]
    assert len(same) >= 2 and same == sorted(same)
    for one in found:
        assert one.left == whole.total - one.saves and one.ways == 1
    with_remat = next(one for one in found if "model.video.remat=full" in one.words)
    assert 1.2 < with_remat.slower < 1.4


@pytest.mark.slow
def test_several_together_where_none_alone_is_enough():
    experiment = tiny_experiment("no", mesh=dataclasses.replace(tiny_experiment("no").mesh, data=8))
    loader = dataclasses.replace(experiment.loader, batch=128)
    experiment = dataclasses.replace(experiment, loader=loader)
    alone = remedies(case(experiment, 0), count=9)
    best = min(one.left for one in alone)
    found = remedies(case(experiment, best - MIB // 2))
    assert len(found) == 3 and found[0].fits and found[0].ways > 1 and found[0].same
    assert not any(one.fits for one in found[1:]) and found[1].saves >= found[2].saves
    text = "\n".join(oom._remedies(case(experiment, best - MIB // 2), found))
    assert "no remedy alone is enough, the first of these together are" in text
    assert "not enough alone" in text


@pytest.mark.slow
def test_where_nothing_is_enough_it_says_so():
    found = case(tiny_experiment("no"), 1000)
    text = "\n".join(oom._remedies(found, remedies(found)))
    assert "no remedy is enough, nor are all together: state, batch and gradients alone take" in text
    assert text.count("not enough alone") == 3


@pytest.mark.slow
def test_every_word_is_one_that_a_command_takes(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    config = tmp_path / "tiny.py"
    asked = ("loss.impl=dense", "dtype=float32", "loader.batch=512")
    experiment = load_experiment(config, asked)
    words = set()
    for topology in ("cpu", "h100x8"):
        words |= {one.words for one in remedies(case(experiment, 10**12, parse(topology)), count=20)}
    assert {("loss.impl=chunked", "loss.chunk=64"), ("loss.impl=ring",), ("dtype=bfloat16",)} <= words
    assert {("grad_cache=2",), ("ema=none",), ("loader.batch=256",)} <= words
    for each in words:
        assert load_experiment(config, (*asked, *each)) != experiment


@pytest.mark.parametrize(
    ("environment", "said"), [({}, True), ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, False)]
)
def test_a_gpu_whose_allocator_takes_too_little(environment, said):
    topology = parse("h100x8")
    now = need(tiny_experiment("no"), topology)
    limit, whole = int(0.75 * 80e9), topology.memory
    found = Case(now, limit + 10**9, now.temp, topology, Room(limit, "the device's allocator", whole))
    (one,) = allocator(found, environment)
    assert one.words == ("XLA_PYTHON_CLIENT_MEM_FRACTION=0.92",) and one.fits and one.same
    assert one.saves == whole - limit == pytest.approx(0.17 * 80e9)
    assert ("XLA_PYTHON_CLIENT_PREALLOCATE=false" in one.price) == said
    assert list(allocator(dataclasses.replace(found, room=Room(int(whole * 0.99), "", whole)))) == []
    assert list(allocator(dataclasses.replace(found, topology=parse("cpu")))) == []


@pytest.mark.slow
def test_a_larger_share_counts_among_several():
    topology = parse("h100x1")
    loader = dataclasses.replace(tiny_experiment("no").loader, batch=16)
    experiment = tiny_experiment("no", loader=loader, ema=None)
    alone = remedies(case(experiment, 0, topology), count=9)
    whole = min(one.left for one in alone if one.same)
    # What all of the device holds after the best of them; the allocator takes a tenth less.
    found = remedies(case(experiment, int(0.9 * whole), topology, whole), count=4)
    assert found[0].words[0] == "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92" and found[0].ways >= 2 and found[0].fits
    assert found[0].left <= int(0.9 * whole) < whole


@dataclasses.dataclass(frozen=True)
class Device(Described):
    stats: dict[str, int] | None = None
    coords: tuple[int, ...] = ()

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats


@pytest.mark.parametrize(
    ("device", "limit", "source"),
    [
        (Device(0, "gpu", "NVIDIA H100 80GB HBM3", stats={"bytes_limit": 10**10}), 10**10, "allocator"),
        (Device(0, "tpu", "TPU v5 lite"), int(15.75 * 2**30), "planner's table, TPU v5 lite"),
        (Device(0, "tpu", "TPU7x"), int(96 * 2**30 * 15.75 / 16), "planner's table"),
        (Device(0, "gpu", "Some GPU"), 0, "nobody: Some GPU tells no limit"),
    ],
)
def test_what_a_device_has(device, limit, source):
    found = room(device, 1)
    assert found.limit == limit and source in found.source


def test_the_devices_of_a_cpu_share_its_memory():
    device = Device(0, "cpu", "cpu")
    assert room(device, 8).limit == room(device, 1).limit // 8 > MIB
    assert "divided by its 8 devices" in room(device, 8).source


def test_topologies_of_devices():
    box = [Device(n, "tpu", "TPU v5p", coords=(n % 2, n // 2 % 2, n // 4)) for n in range(16)]
    assert (topology_of(box).name, topology_of(box).devices) == ("v5p:2x2x4", 16)
    part = topology_of(box[:7])
    assert (part.shape, part.devices) == ((7, 1, 1), 7)
    pair = [Device(n, "tpu", "TPU7x", coords=(n // 2, 0, 0)) for n in range(8)]
    assert (topology_of(pair).shape, topology_of(pair).devices) == ((4, 1, 1), 8)
    gpus = topology_of([Device(n, "gpu", "NVIDIA H200") for n in range(8)])
    assert (gpus.name, gpus.devices) == ("h200x8", 8)
    other = topology_of([Device(n, "gpu", "NVIDIA T4") for n in range(2)])
    assert (other.name, other.devices, other.chip.flops != other.chip.flops) == ("NVIDIA T4", 2, True)
    # Rates that nobody knows leave FLOPs to compare by.
    found = need(tiny_experiment("no"), other)
    assert found.cost > 1e6


@pytest.mark.parametrize(
    ("problem", "full"),
    [
        (error(), True),
        (error("INTERNAL: Error dispatching computation: Out of memory allocating 5 bytes."), True),
        (error("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17G of 15.75G hbm."), True),
        (
            error("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. It should not be possible"),
            False,
        ),
        (error("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 300000"), False),
        (error("RESOURCE_EXHAUSTED: Received message larger than max"), False),
        (error("INTERNAL: nothing"), False),
        (RuntimeError(FULL), False),
        (ConfigError(FULL), False),
    ],
)
def test_what_counts_as_a_full_device(problem, full, monkeypatch):
    monkeypatch.setattr(Memories, "report", lambda self, problem: "the report")
    assert is_full(problem) == full
    caught: Any = OutOfMemory if full else type(problem)
    with pytest.raises(caught) as found, Memories(tiny_experiment("no")):
        raise problem
    assert full or found.value is problem


def test_the_compilers_words_are_read():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G"
    memories = Memories(tiny_experiment("no"))
    found, total, source = memories._case(error(text))
    assert found.total == total.total == int(17.5 * 2**30) and source == "the compiler refused it"
    assert found.temp == found.total - found.now.held


class Refuses:
    """The real step, whose run fails as one of a full device does."""

    def __init__(self, step: Any, problem: Exception, at: int) -> None:
        self.step, self.problem, self.at, self.calls = step, problem, at, 0

    def lower(self, *given: Any) -> Any:
        return self.step.lower(*given)

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.problem
        return self.step(*given)


@pytest.fixture
def command(tmp_path: Path, tiny_world: Path, shared_compiles: None) -> list[str]:
    (tmp_path / "tiny.py").write_text(CONFIG)
    return ["train", str(tmp_path / "tiny.py"), f"world={tiny_world}", f"run={tmp_path / 'run'}"]


def fail(monkeypatch: pytest.MonkeyPatch, problem: Exception, at: int = 3) -> None:
    make = loop.make_step
    monkeypatch.setattr(loop, "make_step", lambda starter: Refuses(make(starter), problem, at))


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_ends_with_a_report(command, monkeypatch, capsys):
    fail(monkeypatch, error())
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: out of memory noticed in step 3 of this process: {FULL}\n")
    assert "(the compiler's account):" in err
    assert re.search(
        r"by their shardings: parameters [\d.]+ MiB, optimizer [\d.]+ MiB, average [\d.]+ MiB, batch", err
    )
    assert re.search(r"by the compiler: temporaries \(activations, gradients, loss\) [\d.]+ MiB", err)
    assert "the loss 96 B (dense, 1 x 8 in f32)" in err
    assert re.findall(r"^  (\d)\. \S", err, re.MULTILINE) == ["1", "2", "3"]
    assert err.count("saves ") == 3 and "by these figures it fits" in err


def test_the_first_step_says_so(command, monkeypatch, capsys):
    monkeypatch.setattr(oom, "remedies", lambda case: [])
    fail(monkeypatch, error(), at=1)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "error: out of memory in the first step (compiling or running it): " in err
    assert err.endswith(
        "nothing that the planner knows makes it smaller: take more devices or a smaller model\n"
    )


@pytest.mark.slow
def test_a_state_that_does_not_fit(command, monkeypatch, capsys):
    def begin(self: Any) -> Any:
        raise error()

    monkeypatch.setattr(loop.Run, "_begin", begin)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert "out of memory before the first step, when the state was made" in err and "(by analysis):" in err
    assert err.count("saves ") == 3


def test_an_evaluation_that_does_not_fit(command, monkeypatch, capsys):
    def evaluate(self: Any, number: int) -> Any:
        raise error()

    monkeypatch.setattr(loop.Run, "evaluate", evaluate)
    monkeypatch.setattr(oom, "remedies", lambda case: [])
    assert main(command) == 1
    assert "error: out of memory in an evaluation (`evals=()` trains without" in capsys.readouterr().err


def test_an_ordinary_error_passes_as_it_is(command, monkeypatch):
    problem = error("INTERNAL: a kernel failed")
    fail(monkeypatch, problem)
    with pytest.raises(jax.errors.JaxRuntimeError) as found:
        main(command)
    assert found.value is problem


def test_where_no_report_can_be_made_both_errors_are_shown(command, monkeypatch, capsys):
    def broken(*given: Any) -> Any:
        raise KeyError("a device that nobody knows")

    fail(monkeypatch, error())
    monkeypatch.setattr(oom, "topology_of", broken)
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: out of memory noticed in step 3 of this process: {FULL}\n")
    assert "no report on it could be made: KeyError: 'a device that nobody knows'" in err


def test_a_compiler_that_fails_too_leaves_the_analysis(monkeypatch):
    memories = Memories(tiny_experiment("no"))

    class Step:
        def lower(self, *given: Any) -> Any:
            raise error("RESOURCE_EXHAUSTED: again")

        def __call__(self, *given: Any) -> Any:
            return given

    memories.watch(Step())({}, {})
    assert "by analysis: the compiler gave no account (RESOURCE_EXHAUSTED: again)" in memories.report(error())


def test_the_others_hear_the_report_and_end():
    class Said(Peers):
        def leave(self, code: int = 0, text: str = "") -> None:
            left.append((code, text.splitlines()[0]))

    left: list[tuple[int, str]] = []
    ends: list[int] = []
    place = Place("a:1", 2, 1, "options")
    started = Started(place, Said(place), 0.0, lambda text, code: ends.append(code))
    with pytest.raises(OutOfMemory), started, Memories(tiny_experiment("no")):
        raise error()
    told = f"out of memory before the first step, when the state was made: {FULL}"
    assert left == [(1, told)] and ends == [1]


@pytest.mark.slow
def test_a_real_one(tiny_world, tmp_path):
    """A projection of 2 to the 40 columns: no machine gives so much, and nothing is touched."""
    (tmp_path / "tiny.py").write_text(CONFIG)
    words = [f"world={tiny_world}", f"run={tmp_path / 'run'}", f"model.embedding={2**40}"]
    program = [sys.executable, "-m", "stvl", "train"]
    done = subprocess.run(
        # Should it ever be given after all, the shell's limit stops it.
        ["bash", "-c", 'ulimit -v 41943040; exec "$@"', "bash", *program, str(tmp_path / "tiny.py"), *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert "error: out of memory " in done.stderr and "Out of memory allocating" in done.stderr
    assert "no remedy is enough, nor are all together" in done.stderr
    assert "Traceback" not in done.stderr
