"""Linen blocks that take their parts as fields; the maths lives in pure functions of `stvl.ops`."""
