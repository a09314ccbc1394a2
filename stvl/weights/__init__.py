"""The engine of weights in and out: readers, invertible rules, strict loading. It knows no model."""
