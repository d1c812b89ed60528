"""Second derivatives along directions of one layer: the tangent of a tangent."""
