"""A race of optimizers on real data, one JSON file per run, spread over as many sessions as needed."""
