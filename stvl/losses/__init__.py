"""Losses: pure functions over arrays, the convention of the paper in the first line. They never see a model."""
