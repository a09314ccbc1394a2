"""CLIP's plain ViT (arXiv 2103.00020) as a video encoder by joint space-time attention, as AVION has it."""
