"""Methods that apply T to a matrix: `base` says what one is, `table` which there are."""
