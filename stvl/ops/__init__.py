"""Pure functions with exchangeable backends: rotary, attention, pairwise. Each has an f32 reference that is its meaning."""
