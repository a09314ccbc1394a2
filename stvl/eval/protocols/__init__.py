"""Published evaluations, one file each: a config with `run(encoders) -> Result`."""
