"""Annotation dialects: each module reads one published format into clips and questions."""
