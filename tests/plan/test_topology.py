"""Names of topologies, and what is refused."""

from __future__ import annotations

import importlib.util

import pytest

from stvl.core.errors import ConfigError
from stvl.plan.chips import CHIPS
from stvl.plan.topology import devices_of, parse


@pytest.mark.parametrize(
    ("name", "slices", "shape", "chips", "devices"),
    [
        ("v5e:16x16", 1, (16, 16), 256, 256),
        ("v5p:16x16x16", 1, (16, 16, 16), 4096, 4096),
        ("v6e:4x8", 2, (4, 8), 64, 64),
        ("v4:2x2x4", 1, (2, 2, 4), 16, 16),
        ("tpu7x:2x2x1", 1, (2, 2, 1), 4, 8),
        ("h200x8", 4, (8,), 32, 32),
        ("a100x64", 1, (64,), 64, 64),
        ("cpu", 1, (1,), 1, 1),
        ("cpu:8", 1, (8,), 8, 8),
    ],
)
def test_names(name, slices, shape, chips, devices):
    found = parse(name, slices)
    assert (found.shape, found.chips, found.devices) == (shape, chips, devices)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:16x16", r"unknown topology 'v5:16x16' \(did you mean 'v5p:16x16'\?\)"),
        ("h20x8", r"unknown topology 'h20x8' \(did you mean 'h200x8'\?\)"),
        ("v5e", r"unknown topology 'v5e' .*write v5e:16x16"),
        ("v5e:4x4x4", r"v5e has a torus of 2 axes, found 'v5e:4x4x4': write for example v5e:4x4"),
        ("v5p:0x4x4", "v5p has a torus of 3 axes"),
        ("h100x12", "h100 comes in hosts of 8: 'h100x12' is neither within one nor a multiple"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ConfigError, match=message):
        parse(name)


def test_slices_are_at_least_one():
    with pytest.raises(ConfigError, match="--slices is at least 1, found 0"):
        parse("v5e:4x4", 0)


def test_only_full_axes_close():
    # v5e closes an axis of 16 only, v5p multiples of 4.
    assert parse("v5e:8x16").rings() == (False, True)
    assert parse("v5p:2x4x8").rings() == (False, True, True)
    assert parse("h200x8").rings() == (False,)


def test_memory_of_a_device():
    # 15.75 of 16 GiB, as the compiler of v5e says; two devices share a chip of tpu7x.
    assert parse("v5e:2x2").memory == int(15.75 * 2**30)
    assert parse("tpu7x:2x2x1").memory == int(192 * 2**30 / 2 * 15.75 / 16)


def test_every_chip_has_a_source_and_sane_numbers():
    for chip in CHIPS.values():
        assert chip.source and 1e14 < chip.flops < 1e16 and chip.bandwidth < chip.flops / 50
        assert chip.network < chip.link < chip.bandwidth


@pytest.mark.usefixtures("as_installed")
def test_without_libtpu_the_message_says_how_to_get_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else found(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"v5e:4x4 needs the TPU compiler: pip install 'stvl\[tpu\]'"):
        devices_of(parse("v5e:4x4"))


def test_gpus_have_no_compiler_and_cpus_must_be_there():
    with pytest.raises(ConfigError, match="GPU topologies are planned by analysis only"):
        devices_of(parse("h200x8"))
    with pytest.raises(ConfigError, match=r"cpu:16 needs 16 CPU devices, jax shows 8: set XLA_FLAGS"):
        devices_of(parse("cpu:16"))
    assert len(devices_of(parse("cpu:4"))) == 4
