"""A pytest plugin: picks the tests of one framework, and writes down each that ran.

A test has run on a GPU if it took memory there. ``-p counting --framework torch --record FILE``.
"""

import importlib
import json
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--framework", required=True, help="torch, jax or cupy")
    parser.addoption("--library", default="", help="whose arrays stand in for the framework's")
    parser.addoption("--record", required=True, type=Path, help="JSON lines are added to this file")
    parser.addoption("--job", default="", help="name of this run in the file")
    parser.addoption("--examples", type=int, default=0, help="most examples of a property")


def pytest_configure(config):
    config.pluginmanager.register(Counter(config), "device-counter")


class Counter:
    """Follows the tests of a session."""

    def __init__(self, config):
        self.config = config
        self.framework = config.getoption("--framework")
        self.library = config.getoption("--library") or self.framework
        self.gpu = config.getoption("--device") == "cuda"
        self.allocations = allocation_counter(self.framework) if self.gpu else None
        self.before = 0
        self.lines = 0

    def pytest_collection_modifyitems(self, config, items):
        own = [item for item in items if framework_of(item) in (self.framework, self.library)]
        config.hook.pytest_deselected(items=[item for item in items if item not in own])
        items[:] = own
        if most := config.getoption("--examples"):
            limit_examples(items, most)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.before = self.allocations() if self.allocations else 0
        return (yield)

    def pytest_runtest_logreport(self, report):
        if report.when == "setup" and not report.skipped and not report.failed:
            return
        if report.when == "teardown" and not report.failed:
            return
        line = {"test": report.nodeid, "outcome": report.outcome}
        if report.skipped and isinstance(report.longrepr, tuple):
            line["reason"] = str(report.longrepr[2]).removeprefix("Skipped: ")
        if report.failed:
            line["error"] = str(report.longrepr)[-1500:]
        if self.allocations:
            line["on_gpu"] = self.allocations() > self.before
        self.write(line)

    def pytest_sessionfinish(self, session, exitstatus):
        self.write({"finished": True, "exit": int(exitstatus)})

    def write(self, line):
        named = {"job": self.config.getoption("--job"), "framework": self.framework}
        with self.config.getoption("--record").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**named, **line}) + "\n")


def limit_examples(items, most):
    """Let properties draw at most so many examples, unless they say themselves how many."""
    settings = importlib.import_module("hypothesis").settings
    functions = {id(item.function): item.function for item in items if hasattr(item, "function")}
    for function in functions.values():
        own = getattr(function, "_hypothesis_internal_settings_applied", False)
        if getattr(function, "is_hypothesis_test", False) and not own:
            settings(deadline=None, max_examples=most)(function)


def framework_of(item):
    """The library whose arrays a test is about, or None."""
    if marker := item.get_closest_marker("framework"):
        return marker.args[0]
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return parameters["xp"][0] if "xp" in parameters else None


def allocation_counter(framework):
    """What tells how often memory of the GPU was taken until now."""
    if framework == "torch":
        torch = importlib.import_module("torch")
        return lambda: torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    if framework == "jax":
        jax = importlib.import_module("jax")
        return lambda: (jax.devices()[0].memory_stats() or {}).get("num_allocs", 0)
    cupy = importlib.import_module("cupy")
    pool, count = cupy.get_default_memory_pool(), [0]

    def allocate(size):
        count[0] += 1
        return pool.malloc(size)

    cupy.cuda.set_allocator(allocate)
    return lambda: count[0]
