"""Rotary position schemes as data: a coordinate rule plus a frequency matrix, ``angles = coords @ F``."""
