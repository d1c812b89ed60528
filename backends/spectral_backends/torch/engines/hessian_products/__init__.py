"""Second derivatives along directions by differentiating the graph of one layer's gradient."""
