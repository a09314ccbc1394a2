"""EVA02-AT (arXiv 2506.14356): an EVA-02 CLIP turned into a video encoder by joint attention with ST-RoPE."""
