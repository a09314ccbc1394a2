"""Metrics as functions of numpy arrays; nothing here knows a model, a file or jax."""
