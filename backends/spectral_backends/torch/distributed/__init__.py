"""Ranks of a process group, and shards of parameters."""
