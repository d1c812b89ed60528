"""Forward mode: directions sent forward from their layer, with adjoints that all layers share."""
