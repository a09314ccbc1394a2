"""Compiled programs in a bucket."""

from __future__ import annotations

import jax

from stvl.core.paths import to_path
from stvl.train.cache import compile_cache
from tests.train.test_cache import compiled


def test_a_bucket_keeps_programs_too(gcs, bucket):
    folder = to_path(f"gs://{bucket}/run/compile-cache")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        for told in ("0 found, ", "1 found, 0 new in gs://"):
            with compile_cache(folder, "on") as use:
                compiled(7.0)
                assert told in use.describe()
        assert gcs.names(bucket, "run/compile-cache/")
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
