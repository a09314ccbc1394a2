"""Claims of papers as runs on the toy world: what is trained, how it is measured, and what came out beside chance."""
