"""Plans a run for devices that are not here: what fits, how long a step takes, and what it costs."""
