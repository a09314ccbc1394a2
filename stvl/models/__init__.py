"""Families of models: in each a module and its presets (sizes as data)."""
