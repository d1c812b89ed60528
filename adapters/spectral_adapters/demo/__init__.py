"""Two small networks trained on real digits, measured and plotted: `spectral-core demo`."""

from spectral_adapters.demo.run import DemoRun as DemoRun
from spectral_adapters.demo.run import find_sentences as find_sentences
from spectral_adapters.demo.run import run_demo as run_demo

__all__ = ["DemoRun", "find_sentences", "run_demo"]
