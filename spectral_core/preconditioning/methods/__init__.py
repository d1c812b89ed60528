"""Methods that apply T to a matrix: `base` defines a method, and `table` lists all of them."""
