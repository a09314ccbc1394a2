"""A run as one typed object, a pure step, a short loop, and checkpoints that bring it back."""
