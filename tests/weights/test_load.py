"""Strict loading: what a plan accepts, what it says, and what it reads."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from stvl.core.errors import WeightsError
from stvl.weights.load import Target, entries_of, plan_load, unplan
from stvl.weights.resize import cut_context, resize_places, resize_times
from stvl.weights.rules import First, Flat, Ignored, Layout, Linear, New, Rule, Split

from .tools import Memory, same_bits

F4, BF16 = np.dtype("f4"), np.dtype(ml_dtypes.bfloat16)
D, H, E, DEPTH = 4, 2, 3, 3
LAYOUT = Layout(
    "toy/layout",
    (
        Rule("pos", ("class", "places"), (First(),)),
        Rule("blocks.{i}.qkv.weight", ("layers/q", "layers/k", "layers/v"), (Split(), Linear())),
        Rule("blocks.{i}.qkv.bias", ("layers/qb", "layers/kb", "layers/vb"), (Split(), Flat())),
        Rule("scale", ("scale",)),
    ),
    ignored=(Ignored(r"(blocks\.\d+\.)?rope\..*", "recomputed"),),
    new=(New("times", "zeros"),),
)
RNG = np.random.default_rng(0)


def arrays(prefix: str = "", depth: int = DEPTH) -> dict[str, np.ndarray]:
    made = {"pos": RNG.normal(size=(10, D)), "scale": np.array(2.0), "rope.freqs": np.ones(3)}
    for i in range(depth):
        made[f"blocks.{i}.qkv.weight"] = RNG.normal(size=(3 * H * E, D))
        made[f"blocks.{i}.qkv.bias"] = RNG.normal(size=3 * H * E)
        made[f"blocks.{i}.rope.t"] = np.ones(2)
    return {prefix + name: array.astype(F4) for name, array in made.items()}


def targets(**changed: tuple[int, ...]) -> dict[str, Target]:
    shapes: dict[str, tuple[int, ...]] = {"class": (D,), "places": (9, D), "scale": (), "times": (4, D)}
    shapes |= {f"layers/{name}": (DEPTH, D, H, E) for name in "qkv"}
    shapes |= {f"layers/{name}b": (DEPTH, H, E) for name in "qkv"}
    return {path: Target(shape, F4) for path, shape in {**shapes, **changed}.items()}


def test_everything_is_accounted_for_and_nothing_is_read():
    source = Memory(arrays())
    plan = plan_load(LAYOUT, source, targets())
    assert source.seen == []
    assert plan.taken.keys() | plan.ignored.keys() == source.entries.keys()
    assert plan.fills.keys() | plan.new.keys() == targets().keys()
    assert plan.taken["blocks.2.qkv.bias"].source == "blocks.{i}.qkv.bias"
    assert plan.ignored["blocks.1.rope.t"] == "recomputed"
    assert plan.new == {"times": "zeros"}
    assert plan.resized == {}
    assert plan.prefix == ""


def test_values_and_what_is_read():
    found = arrays()
    source = Memory(found)
    plan = plan_load(LAYOUT, source, targets())
    k = plan.read("layers/k")
    assert source.seen == [f"blocks.{i}.qkv.weight" for i in range(DEPTH)]
    for i in range(DEPTH):
        want = found[f"blocks.{i}.qkv.weight"][H * E : 2 * H * E].T.reshape(D, H, E)
        assert np.array_equal(k[i], want)
    assert np.array_equal(plan.read("class"), found["pos"][0])
    assert plan.read("scale") == 2
    assert {path for path, _ in plan.items()} == set(targets()) - {"times"}
    with pytest.raises(WeightsError, match="times does not come from memory: zeros"):
        plan.read("times")
    with pytest.raises(WeightsError, match=r"no parameter 'layers/w'.*"):
        plan.read("layers/w")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_in_front_of_all_names(prefix: str):
    found = arrays(prefix)
    plan = plan_load(LAYOUT, Memory(found), targets())
    assert plan.prefix == prefix
    assert np.array_equal(plan.read("places"), found[prefix + "pos"][1:])
    params = {path: plan.read(path) for path in plan.fills}
    entries = {name: Memory(found).entries[name] for name in plan.taken}
    back = {name: read() for name, _, read in unplan(LAYOUT, params, entries)}
    assert all(same_bits(back[name], found[name]) for name in plan.taken)


def test_a_wrapper_in_front_of_some_names_is_no_wrapper():
    found = arrays("module.") | {"scale": np.ones((), F4)}
    with pytest.raises(WeightsError, match=r"module\.pos \(10, 4\)"):
        plan_load(LAYOUT, Memory(found), targets())
    found = arrays("module.")
    del found["module.blocks.1.qkv.bias"]
    with pytest.raises(
        WeightsError, match=r"module\.blocks\.1\.qkv\.bias for layers/qb, layers/kb, layers/vb"
    ):
        plan_load(LAYOUT, Memory(found), targets())


def test_source_to_model_to_source_is_exact():
    found = arrays()
    found["pos"].view(np.uint32)[0, 0] = 0x80000000  # -0
    source = Memory(found)
    plan = plan_load(LAYOUT, source, targets())
    read: list[str] = []

    def param(path: str) -> np.ndarray:
        read.append(path)
        return plan.read(path)

    lazy = {path: lambda path=path: param(path) for path in plan.fills}
    items = list(unplan(LAYOUT, lazy, {name: source.entries[name] for name in plan.taken}))
    assert read == []
    assert all(same_bits(read_(), found[name]) for name, _, read_ in items)
    assert sorted(read) == sorted(plan.fills)  # each once, for all its layers
    assert entries_of(LAYOUT, targets()) == {name: source.entries[name] for name in plan.taken}


def test_casting_rounds_to_nearest_even():
    found = arrays()
    # Between 1 and the next bfloat16, 1 + 2^-7: the middle goes to the even one, more goes up.
    found["scale"] = np.array(1 + 2**-8, F4)
    plan = plan_load(LAYOUT, Memory(found), {p: Target(t.shape, BF16) for p, t in targets().items()})
    assert plan.read("scale").dtype == BF16
    assert float(plan.read("scale")) == 1.0
    assert plan.read("scale", np.float64) == 1 + 2**-8
    assert plan.source_dtype("scale") == F4
    found["scale"] = np.array(1 + 2**-8 + 2**-20, F4)
    plan = plan_load(LAYOUT, Memory(found), targets())
    assert float(plan.read("scale", BF16)) == 1 + 2**-7
    found["scale"] = np.array(70000, F4)
    plan = plan_load(LAYOUT, Memory(found), targets())
    with pytest.raises(
        WeightsError, match=r"memory: scale holds numbers beyond the range of float16 \(65504\)"
    ):
        plan.read("scale", np.float16)


def test_layers_of_two_dtypes():
    found = arrays()
    found["blocks.1.qkv.bias"] = found["blocks.1.qkv.bias"].astype(BF16)
    plan = plan_load(LAYOUT, Memory(found), targets())
    assert plan.source_dtype("layers/qb") == F4
    assert np.array_equal(
        plan.read("layers/qb")[1], found["blocks.1.qkv.bias"][: H * E].astype(F4).reshape(H, E)
    )


def test_resizes_only_where_a_rule_is_given():
    found = arrays()
    grown = targets(places=(16, D))
    with pytest.raises(
        WeightsError, match=r"pos \(10, 4\) for places: there it is \(9, 4\), .* no rule resizes it"
    ):
        plan_load(LAYOUT, Memory(found), grown)
    plan = plan_load(
        LAYOUT, Memory(found), grown, resize={"places": resize_places(4, 4), "class": resize_times(1)}
    )
    assert plan.resized == {"places": "places resampled to a grid of 4 x 4 (bicubic, antialias)"}
    assert plan.read("places").shape == (16, D)
    assert np.array_equal(plan.read("class"), found["pos"][0])
    with pytest.raises(WeightsError, match=r"makes \(25, 4\) of \(9, 4\), the model has \(16, 4\)"):
        plan_load(LAYOUT, Memory(found), grown, resize={"places": resize_places(5, 5)})
    with pytest.raises(WeightsError, match="a context of 16 needs 16 positions, the source has 9"):
        plan_load(LAYOUT, Memory(found), grown, resize={"places": cut_context(16)})
    with pytest.raises(WeightsError, match=r"no parameter 'place' to resize \(did you mean 'places'"):
        plan_load(LAYOUT, Memory(found), grown, resize={"place": cut_context(16)})


def test_more_new_and_more_ignored():
    found = {name: array for name, array in arrays().items() if name != "scale"} | {"head": np.ones(3, F4)}
    with pytest.raises(
        WeightsError, match=r"(?s)left over in the file \(1\):\s+head .*missing in the file \(1\):\s+scale"
    ):
        plan_load(LAYOUT, Memory(found), targets())
    extra = {"extra_new": (New("scale", "starts at 1"),), "extra_ignored": (Ignored("head", "another task"),)}
    plan = plan_load(LAYOUT, Memory(found), targets(), **extra)
    assert plan.new["scale"] == "starts at 1"
    assert plan.ignored["head"] == "another task"
    # Asked for by name, a tensor that has a rule is left out as well.
    drop = {"extra_new": (New("scale", "asked for"),), "extra_ignored": (Ignored("scale", "asked for"),)}
    plan = plan_load(LAYOUT, Memory(arrays()), targets(), **drop)
    assert plan.ignored["scale"] == plan.new["scale"] == "asked for"


def test_parameters_that_no_rule_knows_and_rules_whose_parameters_are_not_there():
    with pytest.raises(
        WeightsError, match=r"missing in the file \(1\):\s+bias \(3,\), a parameter that the layout"
    ):
        plan_load(LAYOUT, Memory(arrays()), targets(bias=(3,)))
    fewer = {path: target for path, target in targets().items() if path != "scale"}
    with pytest.raises(WeightsError, match=r"scale \(\), its parameter scale is not in the model"):
        plan_load(LAYOUT, Memory(arrays()), fewer)
    without = {name: array for name, array in arrays().items() if name != "scale"}
    assert "scale" not in plan_load(LAYOUT, Memory(without), fewer).fills


def test_new_does_not_hide_a_tensor_of_another_shape():
    layout = Layout("toy", (Rule("a", ("a",)),), new=(New("a", "may be absent"),))
    with pytest.raises(WeightsError, match=r"a \(3,\) for a"):
        plan_load(layout, Memory({"a": np.ones(3, F4)}), {"a": Target((2,), F4)})
    assert plan_load(layout, Memory({}), {"a": Target((2,), F4)}).new == {"a": "may be absent"}


BAD_LAYOUTS = {
    "source twice": ((Rule("a", ("x",)), Rule("a", ("y",))), (), "two rules take a"),
    "target twice": ((Rule("a", ("x",)), Rule("b", ("x",))), (), "x is filled twice, from a and b"),
    "pattern over a name": (
        (Rule("a.{i}", ("x",)), Rule("a.0", ("y",))),
        (),
        r"a\.0 belongs to a\.0 and to a\.\{i\}",
    ),
    "two layers": ((Rule("a.{i}.{i}", ("x",)),), (), "more than once"),
    "ignored": (
        (Rule("a.0", ("x",)),),
        (Ignored("a.*", "why"),),
        r"a\.0 belongs to a\.0 and to ignored: why",
    ),
    "no target": ((Rule("a.0", ()),), (), "a.0 has no target"),
}


@pytest.mark.parametrize("case", BAD_LAYOUTS)
def test_layouts_that_contradict_themselves(case: str):
    rules, ignored, message = BAD_LAYOUTS[case]
    with pytest.raises(WeightsError, match=message):
        plan_load(Layout("bad", rules, ignored), Memory({"a.0": np.ones(1, F4)}), {})


def test_stacks_of_different_depth_are_refused():
    with pytest.raises(WeightsError, match="are not stacked over the same layers"):
        plan_load(LAYOUT, Memory(arrays()), targets(**{"layers/q": (DEPTH + 1, D, H, E)}))


def test_export_refuses_what_does_not_fit():
    source = Memory(arrays())
    plan = plan_load(LAYOUT, source, targets())
    params = {path: plan.read(path) for path in plan.fills}
    entries = {name: source.entries[name] for name in plan.taken}
    with pytest.raises(WeightsError, match=r"cannot make scal \(did you mean 'scale'\?\)"):
        unplan(LAYOUT, params, {**entries, "scal": entries["scale"]})
    with pytest.raises(WeightsError, match=r"pos needs the parameter 'class'.*"):
        unplan(LAYOUT, {path: array for path, array in params.items() if path != "class"}, entries)
    more = {**entries, "blocks.3.qkv.bias": entries["blocks.2.qkv.bias"]}
    with pytest.raises(
        WeightsError, match=r"layers/qb has 3 layers, the names have 0-3 \(blocks\.\{i\}\.qkv\.bias\)"
    ):
        unplan(LAYOUT, params, more)
    lazy = {path: lambda path=path: params[path] for path in params}
    with pytest.raises(WeightsError, match="layers/qb has 3 layers, the names have 0-3"):
        [read() for _, _, read in unplan(LAYOUT, lazy, more)]
    other = {**params, "places": np.ones((8, D), F4)}
    with pytest.raises(
        WeightsError, match=r"pos is \(10, 4\), its parameters \(4,\), \(8, 4\) make \(9, 4\)"
    ):
        [read() for _, _, read in unplan(LAYOUT, other, entries)]
    fewer = {name: entry for name, entry in entries.items() if not name.startswith("blocks.2")}
    with pytest.raises(WeightsError, match=r"layers/q has 3 layers, the names have 0-1"):
        unplan(LAYOUT, params, fewer)
