"""What every room may use: errors, configs, the axis alphabet, dtype policy. Modules that the data room uses import no jax."""
