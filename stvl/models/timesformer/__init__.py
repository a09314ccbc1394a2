"""TimeSformer with CLIP's parts: divided space-time attention, as in Frozen in Time and LaViLa."""
