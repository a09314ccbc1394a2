"""One reader a file format; all give named tensors (`stvl.weights.source.Source`)."""
