"""A loss as a function of the outputs: its terms, its second derivative (Theory 1 and 4.4)."""
