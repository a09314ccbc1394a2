"""Measures the ops: correctness first, then time on a device, or the compiler's own schedule where there is no device."""
