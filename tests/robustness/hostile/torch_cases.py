"""Bad models, losses, data and options for measurements of PyTorch models; those of
tests/backends/torch/test_hostile.py are not repeated."""

import warnings

import torch
from case import gives, refused
from torch import nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem

PROBLEM = "spectral_backends.torch:CurvatureProblem"
X, Y = torch.linspace(-1, 1, 48).reshape(12, 4), torch.arange(12) % 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def build(model=None, loss=F.cross_entropy, batches=None, **options):
    batches = [(X, Y)] if batches is None else batches
    return CurvatureProblem(model or net(), loss, batches, **options)


def function(params, x):
    return x @ params["w"].T


def sparse_model():
    return build(function, params={"w": torch.eye(3, 4).to_sparse()})


def quantized_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build(
            function, params={"w": torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)}
        )


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())


def frozen():
    model = net()
    model[0].weight.requires_grad_(False)
    return model


class Custom:
    """A problem of the user's own, with one thing wrong."""

    def __init__(self, **wrong):
        self._inner, self._wrong = build(), wrong

    def __getattr__(self, name):
        if name == "layer_curvatures":
            raise AttributeError(name)
        if name in self.__dict__["_wrong"]:
            return lambda *arguments, **options: self._wrong[name]
        return getattr(self.__dict__["_inner"], name)


def measured(**wrong):
    return lambda: sc.measure(Custom(**wrong), top_k=2)


LAYER = sc.LayerInfo("a", "linear", (3, 4))
ONES = torch.ones(6, 2), torch.ones(4, 2)


def noted(call, error):
    """An error of the model's own code, with the batch in a note."""
    try:
        call()
    except error as raised:
        return any("on batch 1" in note for note in raised.__notes__)
    return False


CASES = [
    *(refused(PROBLEM, what, call, *words) for what, call, words in (
        ("params a list", lambda: build(function, params=[torch.ones(3, 4)]), ("params", "a list", "pass a dict")),
        ("params empty", lambda: build(function, params={}), ("model", "no parameters", "to measure")),
        ("names no text", lambda: build(function, params={5: torch.ones(3, 4)}), ("params", "5", "names as text")),
        ("integer parameters", lambda: build(function, params={"w": torch.ones(3, 4, dtype=torch.int64)}), ("model", "no parameters", "to measure")),
        ("sparse parameter", sparse_model, ("'w'", "sparse", "to_dense")),
        ("quantized parameter", quantized_model, ("'w'", "quantized", "dequantize")),
        ("device a word", lambda: build(device="gpu"), ("device", "'gpu'", "choose 'cpu'")),
        ("device that is not there", lambda: build(device="cuda:99"), ("device", "'cuda:99'", "choose 'cpu'")),
        ("device without values", lambda: build(device="meta"), ("device", "'meta'", "choose 'cpu'")),
        ("dtype a word", lambda: build(dtype="float32"), ("dtype", "float32", "choose float32 or float64")),
        ("dtype of integers", lambda: build(dtype=torch.int64), ("dtype", "torch.int64", "choose float32")),
        ("weight a number", lambda: build(weight=12), ("weight", "a int", "pass a function")),
        ("weight returns NaN", lambda: build(weight=lambda b: float("nan")), ("weight", "nan", "number of loss terms")),
        ("weight returns a str", lambda: build(weight=lambda b: "many"), ("weight", "'many'", "number of loss terms")),
        ("forward a str", lambda: build(forward="forward"), ("forward", "a str", "pass a function")),
        ("loss a str", lambda: build(loss="cross_entropy"), ("loss_fn", "a str", "pass a function")),
        ("loss returns None", lambda: build(loss=lambda y, t: None), ("loss_fn", "a NoneType", "return a scalar")),
        ("loss returns a tuple", lambda: build(loss=lambda y, t: (y.mean(), 1)), ("loss_fn", "a tuple", "return a scalar")),
        ("loss returns NaN", lambda: build(loss=lambda y, t: y.mean() * float("nan")), ("loss of batch 0", "nan", "look for")),
        ("memory negative", lambda: build(memory_budget=-1), ("memory_budget", "-1", "pass for instance")),
        ("memory a str", lambda: build(memory_budget="8GB"), ("memory_budget", "'8GB'", "pass for instance")),
        ("memory zero", lambda: build(memory_budget=0), ("memory_budget", "0", "pass for instance")),
        ("chunk a float", lambda: build(chunk_size=2.5), ("chunk_size", "2.5", "positive number")),
        ("seed a float", lambda: build(seed=0.5), ("seed", "0.5", "whole number from 0")),
        ("batches a str", lambda: build(batches="abc"), ("batches", "a str", "pass forward=")),
        ("batches None", lambda: CurvatureProblem(net(), F.cross_entropy, None), ("batches", "a NoneType", "pass a list")),
        ("batch of one element", lambda: build(batches=[(X,)]), ("batches", "a tuple", "pass forward=")),
        ("second batch a dict", lambda: build(batches=[(X, Y), {"x": X}]), ("batches", "a dict", "pass forward=")),
    )),
    gives(PROBLEM, "second batch of another width", lambda: noted(lambda: build(batches=[(X, Y), (X[:, :2], Y)]), RuntimeError), bool),
    gives(PROBLEM, "second batch with more inputs", lambda: noted(lambda: build(batches=[(X, Y), (X, X, Y)]), TypeError), bool),
    gives(PROBLEM, "second batch with targets out of range", lambda: noted(lambda: build(batches=[(X, Y), (X, Y + 7)]), IndexError), bool),
    gives(PROBLEM, "integer inputs for a linear layer", lambda: noted(lambda: build(batches=[(X, Y), ((X * 9).long(), Y)]), RuntimeError), bool),
    gives(PROBLEM, "a layer that is never called", lambda: build(Unused()).skipped(), lambda s: "unused.weight" in s or "unused" in s),
    gives(PROBLEM, "a weight of two modules", lambda: [layer.name for layer in build(Shared()).layers()], lambda names: names == ["first", "head"]),
    gives(PROBLEM, "a frozen weight", lambda: [*[layer.name for layer in build(frozen()).layers()], *build(frozen()).skipped()], lambda names: any(name.startswith("0") for name in names)),
    *(refused(f"{PROBLEM}.curvatures", what, lambda a=arguments: build().curvatures(*a), *words) for what, arguments, words in (
        ("unknown layer", ("nope", *ONES), ("'nope'", "none of that name", "layers are: 0, 2")), ("layer a number", (5, *ONES), ("layer 5", "none of that name", "layers are: 0, 2")),
        ("integer directions", ("0", ONES[0].long(), ONES[1]), ("u:", "torch.int64", "pass unit columns")), ("complex directions", ("0", ONES[0] * 1j, ONES[1]), ("u:", "complex64", "pass unit columns")),
        ("NaN directions", ("0", ONES[0], ONES[1] * float("nan")), ("v:", "NaN", "pass unit columns")), ("directions None", ("0", None, ONES[1]), ("u:", "a NoneType", "pass unit columns")),
        ("directions str", ("0", "u", "v"), ("u:", "a str", "pass unit columns")), ("a vector", ("0", ONES[0][:, 0], ONES[1][:, 0]), ("layer '0'", "(6,)", "pass (6, K)")),
        ("unequal numbers", ("0", ONES[0], ONES[1][:, :1]), ("layer '0'", "(4, 1)", "pass (6, K)")), ("unknown kind", ("0", *ONES, "fisher"), ("kind", "'fisher'", "choose 'hessian'")),
        ("kind a list", ("0", *ONES, ["ggn"]), ("kind", "['ggn']", "choose 'hessian'")),
    )),
    *(refused(f"{PROBLEM}.gradients", what, lambda v=names: build().gradients(v), *words) for what, names, words in (
        ("unknown", ["x"], ("'x'", "none of that name", "layers are: 0, 2")), ("a number", [5], ("layer 5", "none of that name", "layers are: 0, 2")),
    )),
    *(refused(f"{PROBLEM}.kronecker_factors", what, lambda o=options: build().kronecker_factors(["0"], **o), *words) for what, options, words in (
        ("fisher_type", {"fisher_type": "x"}, ("fisher_type", "'x'", "choose 'ggn'")), ("kfac_approx", {"kfac_approx": None}, ("kfac_approx", "None", "choose 'expand'")), ("odd draws", {"mc_samples": 3}, ("mc_samples", "3", "even number")),
        ("columns", {"max_columns": -1}, ("max_columns", "-1", "number of columns")),
    )),
    *(refused(f"{PROBLEM}.layer_curvatures", what, lambda o=options: list(build().layer_curvatures({"0": ONES}, **o)), *words) for what, options, words in (
        ("engine", {"engine": "x"}, ("engine", "'x'", "choose one of")), ("mc_samples", {"mc_samples": "many"}, ("mc_samples", "'many'", "pass for instance"))
    )),
    *(refused("measure", f"problem {value!r}", lambda v=value: sc.measure(v), "problem", type(value).__name__, "pass a CurvatureProblem") for value in (5, None, "model")),
    refused("measure", "the model itself", lambda: sc.measure(net()), "problem", "a Sequential", "pass a CurvatureProblem"),
    *(refused("measure", f"{name} {value!r}", lambda n=name, v=value: sc.measure(build(), **{n: v}), name, seen, remedy) for name, value, seen, remedy in (
        ("top_k", True, "True", "positive whole"), ("top_k", float("nan"), "nan", "positive whole"), ("top_k", "20", "'20'", "positive whole"), ("top_k", -5, "-5", "positive whole"), ("top_k", None, "None", "positive whole"),
        ("engine", "fast", "'fast'", "choose"), ("engine", None, "None", "choose"), ("svd", "lanczos", "'lanczos'", "choose"), ("fisher_type", 5, "5", "choose"), ("kfac_approx", [], "[]", "choose"), ("curvature", None, "None", "choose"),
        ("mc_samples", 1, "1", "pass for instance"), ("mc_samples", 2.5, "2.5", "pass for instance"), ("mc_samples", True, "True", "pass for instance"), ("confidence", "high", "'high'", "0.95"), ("confidence", float("nan"), "nan", "0.95"),
        ("layers", 5, "5", "pass for instance"), ("layers", [], "empty", "pass '*'"), ("layers", b"*", "b'*'", "pass for instance"), ("progress", 5, "a int", "pass a function"), ("progress", "yes", "a str", "pass a function"),
        ("resume", 5, "5", "pass a text"), ("resume", b"journal", "b'journal'", "pass a text"), ("resume", "a\0b", "'a\\x00b'", "pass a text"),
    )),
    refused("measure", "resume a folder", lambda: sc.measure(build(), resume="."), ".", "no regular file", "choose another", error=sc.ReportError),
    refused("measure", "resume a device", lambda: sc.measure(build(), resume="/dev/null"), "/dev/null", "no regular file", "choose another", error=sc.ReportError),
    *(refused("measure", f"of the user's own problem: {what}", call, "problem", seen, remedy) for what, call, seen, remedy in (
        ("layers of another type", measured(layers=["a"]), "a str", "return LayerInfo"), ("two layers of one name", measured(layers=[LAYER, LAYER]), "'a'", "name each layer"),
        ("gradients missing", measured(gradients={}), "nothing for layer '0'", "return a real floating"), ("gradients of another shape", measured(gradients={"0": torch.ones(3), "2": torch.ones(3, 6)}), "(3,) for layer '0'", "return a real floating"),
        ("gradients of integers", measured(gradients={"0": torch.ones(6, 4, dtype=torch.int64)}), "torch.int64", "return a real floating"), ("gradients lists", measured(gradients={"0": [[1.0]]}), "a list for layer '0'", "return a real floating"),
        ("one curvature for all", measured(curvatures=torch.tensor(1.0)), "shape () for layer '0'", "return a real floating"), ("curvatures complex", measured(curvatures=torch.ones(2) * 1j), "complex64", "return a real floating"),
        ("curvatures a list", measured(curvatures=[1.0, 2.0]), "list for layer '0'", "return a real floating"), ("described by a set", measured(describe={"tags": {1, 2}}), "describe()", "return numbers"),
        ("described by a number", measured(describe=5), "describe()", "return numbers"),
    )),
    refused("measure", "curvatures all NaN", measured(curvatures=torch.full((2,), float("nan"))), "'0'", "2 NaN", "a small constant under a root", error=sc.SpectralError),
    refused("measure", "a curvature infinite", measured(curvatures=torch.tensor([1.0, float("inf")])), "'0'", "1 infinite", "an overflow", error=sc.SpectralError),
    gives("measure", "a window of 10**9", lambda: sc.measure(build(), top_k=10**9)["0"], lambda s: len(s.sigma) <= 4 and any("window cut" in n for n in s.notes)),
    refused("measure", "every gradient zero", lambda: sc.measure(Custom(gradients={"0": torch.zeros(6, 4), "2": torch.zeros(3, 6)})), "'0'", "2 selected layers", "gradient is zero", error=sc.SpectralError),
]  # fmt: skip
