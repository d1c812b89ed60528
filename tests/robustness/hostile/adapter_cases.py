"""Bad options, parameters and commands for the optimizers and the command line; those of
tests/adapters are not repeated."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from case import gives, refused
from torch import nn

import spectral_core as sc
from spectral_adapters.array_optim import SpectralNewton as ArrayNewton
from spectral_adapters.cli import main
from spectral_adapters.torch_optim import SpectralNewton

TORCH, ARRAYS = (
    "spectral_adapters.torch_optim:SpectralNewton",
    "spectral_adapters.array_optim:SpectralNewton",
)
CLI = "spectral_adapters.cli:main"
NAN = float("nan")
W = np.ones((3, 4))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))


def stepped(gradient):
    """The weights after a step with that gradient in the first layer, less those before."""
    made = model()
    before = [p.detach().clone() for p in made.parameters()]
    optimizer = SpectralNewton(made)
    for p in made.parameters():
        p.grad = torch.full_like(p, gradient)
    optimizer.step()
    return [
        (p.detach() - b).abs().max().item() for p, b in zip(made.parameters(), before, strict=True)
    ]


def updated(gradient):
    optimizer = ArrayNewton()
    return optimizer.update([W], [gradient], optimizer.init([W]))[0][0]


def command(*arguments):
    """Run the command line in an empty folder with an experiment in it; its code and its words."""
    Path("experiment.py").write_text(
        "def problem(weights=None):\n    return 5\n\nname = 'no function'\n"
    )
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(list(arguments))
    return code, output.getvalue()


def fails(code, *words):
    return lambda found: (
        found[0] == code and all(w in found[1] for w in words) and "Traceback" not in found[1]
    )


def damaged(content):
    def call():
        Path("report.json").write_bytes(content)
        return command("show", "report.json")

    return call


def malicious():
    Path("owned.json").write_text(json.dumps({"schema_version": 1, "provenance": "$(touch owned)"}))
    found = command("explain", "owned.json")
    return found if not os.path.exists("owned") else None


OPTIONS = (
    ("lr", "fast", "'fast'", "pass"), ("lr", None, "None", "pass"), ("lr", NAN, "nan", "1e-3"), ("alpha", 5, "5", "[0, 4]"), ("alpha", NAN, "nan", "[0, 4]"), ("alpha", "newton", "'newton'", "per-type"),
    ("alpha", None, "None", "per-type"), ("alpha", {"embedding": 9}, "9", "[0, 4]"), ("damping", "x", "'x'", "pass"), ("damping", NAN, "nan", "0.1 is"), ("momentum", NAN, "nan", "0.95"), ("momentum", "x", "'x'", "pass"),
    ("weight_decay", -1, "-1", "0 or more"), ("weight_decay", "x", "'x'", "pass"), ("damping_mode", "relative", "'relative'", "spectral"), ("tolerance", 2, "2", "0.01"), ("precision", "int8", "'int8'", "working"),
)  # fmt: skip
NAMES = {"momentum": "beta"}
SHARED = {
    TORCH: lambda **o: SpectralNewton(model(), **o),
    ARRAYS: lambda **o: ArrayNewton(**o).init({"w": W}),
}

CASES = [
    *(
        refused(of, f"{name} {value!r}", lambda c=call, n=name, v=value: c(**{n: v}), NAMES.get(name, name), seen, remedy)
        for of, call in SHARED.items()
        for name, value, seen, remedy in OPTIONS
    ),
    *(refused(TORCH, what, call, *words) for what, call, words in (
        ("betas of three", lambda: SpectralNewton(model(), adamw={"betas": (0.9, 0.9, 0.9)}), ("adamw", "(0.9, 0.9, 0.9)", "betas")), ("betas above 1", lambda: SpectralNewton(model(), adamw={"betas": (2.0, 0.9)}), ("adamw", "2.0", "betas")),
        ("eps negative", lambda: SpectralNewton(model(), adamw={"eps": -1.0}), ("adamw", "-1.0", "eps")), ("adamw a number", lambda: SpectralNewton(model(), adamw=5), ("adamw", "a int", "pass a dict")),
        ("params None", lambda: SpectralNewton(None), ("params", "a NoneType", "pass a model")), ("params a number", lambda: SpectralNewton(5), ("params", "a int", "pass a model")),
        ("integer parameters", lambda: SpectralNewton([torch.ones(3, 3, dtype=torch.int64)]), ("params", "torch.int64", "to another optimizer")), ("a glob that matches nothing", lambda: SpectralNewton(model(), route={"conv*": "adamw"}), ("route", "'conv*'", "there are for instance")),
        ("an unknown rule", lambda: SpectralNewton(model(), route={"0.weight": "sgd"}), ("route", "'sgd'", "'adamw'")), ("route a str", lambda: SpectralNewton(model(), route="adamw"), ("route", "a str", "pass a dict")),
    )),
    gives(TORCH, "NaN gradients", lambda: stepped(NAN), lambda moved: moved[0] == 0),
    gives(TORCH, "zero gradients", lambda: stepped(0.0), lambda moved: max(moved) < 1e-6),
    gives(TORCH, "a model without parameters", lambda: refusal(lambda: SpectralNewton(nn.ReLU())), lambda said: "empty" in said),
    *(refused(ARRAYS, what, call, *words) for what, call, words in (
        ("adamw a number", lambda: ArrayNewton(adamw=5), ("adamw", "a int", "pass a dict")), ("route a str", lambda: ArrayNewton(route="adamw"), ("route", "a str", "pass a dict")), ("params None", lambda: ArrayNewton().init(None), ("params", "a NoneType", "pass a dict")),
        ("params of complex", lambda: ArrayNewton().init([W * 1j]), ("params", "complex128", "real floating")), ("gradients None", lambda: ArrayNewton().update([W], None, ArrayNewton().init([W])), ("gradients", "a NoneType", "pass a dict")),
        ("gradients of another library", lambda: updated(torch.ones(3, 4)), ("weight: numpy", "gradient: torch", "convert")), ("gradients of integers", lambda: updated(np.ones((3, 4), dtype=int)), ("gradient", "int64", "convert")),
        ("no state", lambda: ArrayNewton().update([W], [W], None), ("state", "a NoneType", "call init")),
    )),
    gives(ARRAYS, "NaN gradients", lambda: updated(W * NAN), lambda w: (w == W).all()),
    *(gives(CLI, what, lambda a=arguments: command(*a), fails(code, *words)) for what, arguments, code, words in (
        ("no command", [], 2, ("Usage",)), ("a factory that is no function", ["measure", "experiment.py:name"], 1, ("'name'", "check its name")), ("a factory of a number", ["measure", "experiment.py:problem"], 1, ("returned a int", "return a CurvatureProblem")),
        ("a folder for a file", ["measure", ".:problem"], 1, (".",)), ("an empty target", ["measure", ""], 1, ("is not PATH_OR_MODULE",)), ("top-k of letters", ["measure", "experiment.py:problem", "--top-k", "many"], 2, ("not a valid integer",)),
        ("an unknown engine", ["measure", "experiment.py:problem", "--engine", "x"], 2, ("--engine", "auto")), ("show a folder", ["show", "."], 1, ("no regular file", "choose another")), ("show a device", ["show", "/dev/zero"], 1, ("no regular file", "choose another")),
        ("show Python", ["show", "experiment.py"], 1, ("not JSON", "save")), ("explain nothing", ["explain", "none.json"], 1, ("none.json", "check the path")), ("plot nothing", ["plot", "none.json"], 1, ("none.json", "check the path")),
        ("weights of Python", ["measure", "experiment.py:problem", "--weights", "experiment.py"], 1, ("weights", "experiment.py")),
        ("weights a folder", ["measure", "experiment.py:problem", "--weights", "."], 1, ("there is no file", "check the path")),
    )),
    *(gives(CLI, f"show {what}", damaged(content), fails(1, "report.json")) for what, content in (("nothing", b""), ("nested", b"[" * 10**5), ("binary", bytes(range(256))), ("a report of null", b'{"schema_version": 1, "provenance": null, "spectra": [], "skipped": {}}'))),
    gives(CLI, "a report with a command in it", malicious, fails(1, "owned.json")),
]  # fmt: skip


def refusal(call):
    try:
        call()
    except (ValueError, sc.SpectralError) as error:
        return str(error)
    return ""
