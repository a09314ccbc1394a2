"""Traces of a few training steps, and what is in them as text: ``stvl train --profile 10:15``."""
