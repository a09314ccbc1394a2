"""What every room may use: errors, configs, the axis alphabet, sharding. What the data room uses imports no jax."""
