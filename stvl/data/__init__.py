"""From video files to batches of uint8 frames and token ids. Nothing here imports jax, so workers start fast."""
