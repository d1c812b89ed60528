"""Networks of the registry as functions of PyTorch's tensors."""

import numpy as np
import torch
from torch.nn import functional

from spectral_backends.torch import CurvatureProblem


def problem(net, dtype, batches):
    activate = {
        "relu": torch.relu, "identity": lambda z: z, "tanh": torch.tanh,
        "gelu-tanh": lambda z: functional.gelu(z, approximate="tanh"),
    }[net.activation]  # fmt: skip

    def forward(params, x):
        for name, kind in zip(net.layers, net.kinds, strict=False):
            w = params[name]
            if kind == "convolution":
                x = functional.conv1d(x.transpose(1, 2), w, padding=1).transpose(1, 2)
            else:
                x = functional.linear(x, w)
            x = activate(x)
        return functional.linear(x.mean(1), params["head"])

    def squared(z, t):
        return 0.5 * (z - t).square().sum(1).mean()

    loss = functional.cross_entropy if net.loss == "cross-entropy" else squared
    dtype = getattr(torch, np.dtype(dtype).name)
    params = {name: torch.asarray(w, dtype=dtype) for name, w in net.weights.items()}
    data = [tuple(map(torch.asarray, batch)) for batch in batches]
    return CurvatureProblem(forward, loss, data, params=params, weight=lambda batch: len(batch[0]))
