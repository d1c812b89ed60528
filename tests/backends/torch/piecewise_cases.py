"""Small networks that are piecewise linear in every layer."""

import torch
from engine_helpers import module_case, whole
from layer_cases import classes, conv_group, flat_rows, random, transposed
from torch import nn
from torch.nn import functional as F


def relu_mlp():
    model = nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)
    )  # fmt: skip
    return module_case(model, random(7, 5), classes(7, 4), whole("0", "2", "4"))


class Residual(nn.Module):
    """Batch norm by running statistics, dilated groups, a shortcut, max-pool, ReLU in place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1, bias=False)
        self.norm, self.mix = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2)
        self.point, self.head = nn.Conv2d(6, 6, 1), nn.Linear(24, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.leaky_relu(x + self.point(F.relu(self.mix(x), inplace=True)), 0.1)
        return self.head(F.max_pool2d(x, 2).flatten(1))


def cnn():
    model = Residual().double()
    model(random(16, 2, 8, 8))  # running statistics that are not trivial
    with torch.no_grad():
        model.norm.weight.uniform_(-1, 2)
        model.norm.bias.uniform_(-1, 1)
    layers = {"stem": ("stem.weight", flat_rows), "point": ("point.weight", flat_rows)}
    layers |= {f"mix.group{i}": ("mix.weight", conv_group(i, 2)) for i in (0, 1)} | whole("head")
    return module_case(model.eval(), random(7, 2, 8, 8), classes(7, 4), layers)


def conv1d():
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    layers = {"0": ("0.weight", flat_rows)} | whole("4")
    return module_case(model, random(7, 3, 8), classes(7, 4), layers)


def conv3d():
    model = nn.Sequential(nn.Conv3d(2, 3, 2, dilation=2), nn.Hardtanh(), nn.Flatten())
    model.append(nn.Linear(3 * 8, 4))
    layers = {"0": ("0.weight", flat_rows)} | whole("3")
    return module_case(model, random(5, 2, 4, 4, 4), classes(5, 4), layers)


def tokens():
    model = nn.Sequential(nn.Embedding(6, 4, padding_idx=1), nn.Flatten(), nn.ReLU())
    model.append(nn.Linear(12, 4))
    with torch.no_grad():
        model[0].weight[1] = 0.3
    layers = {"0": ("0.weight", transposed)} | whole("3")
    return module_case(model, torch.randint(6, (7, 3)), classes(7, 4), layers)


def positions():
    """A prediction at every position."""
    model = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 4, 1))
    layers = {"0": ("0.weight", flat_rows), "2": ("2.weight", flat_rows)}
    return module_case(model, random(5, 3, 6), torch.randint(4, (5, 6)), layers)


class TokenMlp(nn.Module):
    """Tokens mixed by a linear map, one prediction for each."""

    def __init__(self):
        super().__init__()
        self.inner, self.across, self.head = nn.Linear(3, 5), nn.Linear(4, 4), nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.inner(x))
        x = x + F.relu(self.across(x.mT)).mT
        return self.head(x).mT  # (B, C, T)


def token_mlp():
    return module_case(
        TokenMlp(), random(5, 4, 3), torch.randint(4, (5, 4)), whole("inner", "across", "head")
    )


PIECEWISE = {
    "mlp": relu_mlp, "cnn": cnn, "conv1d": conv1d, "conv3d": conv3d, "embedding": tokens,
    "positions": positions, "token mlp": token_mlp,
}  # fmt: skip
