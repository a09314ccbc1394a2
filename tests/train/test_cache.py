"""A compiled program is found again by the next process, and jax is left as it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from stvl.train.cache import compile_cache


def compiled(number: float) -> float:
    # Without this, jax itself would remember the program.
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.sin(x * 3.25) + number)(1.0))


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        with compile_cache(tmp_path / "cache", "on") as use:
            first = compiled(2.0)
            assert use.describe().startswith("compile cache: 0 found, ")
        with compile_cache(tmp_path / "cache", "on") as use:
            assert compiled(2.0) == first
            assert use.describe() == f"compile cache: 1 found, 0 new in {tmp_path / 'cache'}"
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    assert jax.config.jax_compilation_cache_dir is None
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_cpus_keep_nothing_unless_told_to(mode, tmp_path):
    with compile_cache(tmp_path / "cache", mode) as use:
        assert jax.config.jax_compilation_cache_dir is None
        assert use.describe() == ""
    assert not (tmp_path / "cache").exists()
