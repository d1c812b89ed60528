"""Other libraries that compute the same; each test needs the one that it is held against."""

from importlib.util import find_spec

if find_spec("kfac_jax") is None or find_spec("jax") is None:
    collect_ignore = ["test_kfac_jax.py"]
