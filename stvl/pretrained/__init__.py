"""Public checkpoints in and out: which model a file holds, its conversion into a folder that stvl uses, and back."""
