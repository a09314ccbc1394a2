"""The evaluation room: metrics (numpy only), embedding of datasets, published protocols, indexes and search."""
