"""What a step needs and a device has, by hand, and the remedies in their order."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from stvl.losses.infonce import InfoNCE
from stvl.plan import oom
from stvl.plan.analytic import Described, executed_flops, saved_bytes
from stvl.plan.need import Room, need, room, topology_of
from stvl.plan.shrink import Case, allocator, remedies
from stvl.plan.topology import Topology, parse
from stvl.train.experiment import Experiment, load_experiment
from tests.fixtures import tiny_experiment

MIB = 2**20

CONFIG = """
from tests.fixtures import tiny_experiment


def experiment(world: str = "no"):
    return tiny_experiment(world)
"""


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
