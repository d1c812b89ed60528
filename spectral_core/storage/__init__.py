"""Files that are written whole, and by one process at a time; JSON values."""
