"""Curvature and gradients of every kind of layer against the dense float64 Hessian.

The oracle shares no code with the library: the Hessian of the loss in one parameter by
`torch.autograd.functional.hessian`, and for each layer a hand-written rule that says which elements
of the parameter its matrix holds.
"""

import pytest
import torch
from layer_cases import CASES, Case, Matrix, block, conv_transpose_group, embedding, random
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.instruments.graph import saved_bytes

TOLERANCE = 1e-10


def dense_hessian(case: Case, name: str) -> Tensor:
    """Return the Hessian of the loss in one parameter, as a square matrix."""
    weight = case.parameters()[name]
    hessian = torch.autograd.functional.hessian(
        lambda w: case.loss(case.outputs(name, w), case.target), weight
    )
    return hessian.reshape(weight.numel(), weight.numel())


def dense_ggn(case: Case, name: str) -> Tensor:
    """Return JᵀH J with J the Jacobian of the outputs and H the Hessian of the loss in them."""
    weight = case.parameters()[name]
    jacobian = torch.autograd.functional.jacobian(lambda w: case.outputs(name, w), weight)
    outputs = case.outputs(name, weight).detach()
    inner = torch.autograd.functional.hessian(lambda y: case.loss(y, case.target), outputs)
    jacobian = jacobian.reshape(outputs.numel(), weight.numel())
    return jacobian.T @ inner.reshape(outputs.numel(), outputs.numel()) @ jacobian


def directions(rule: Matrix, shape: torch.Size, u: Tensor, v: Tensor) -> Tensor:
    """Write u_k v_kᵀ into a parameter: the transpose of reading the matrix, by autograd."""
    zero = torch.zeros(shape, dtype=u.dtype, requires_grad=True)
    matrix = rule(zero)
    rows = [
        torch.autograd.grad(matrix, zero, torch.outer(u[:, k], v[:, k]), retain_graph=True)[0]
        for k in range(u.shape[1])
    ]
    return torch.stack(rows).flatten(1)


@pytest.mark.parametrize("name", CASES)
def test_against_dense_second_derivatives(name):
    torch.manual_seed(0)
    case = CASES[name]()
    problem = CurvatureProblem(
        case.model, case.loss, [(*case.inputs, case.target)], params=case.params
    )
    found = {layer.name: layer for layer in problem.layers()}
    assert case.matrices.keys() <= found.keys(), problem.skipped()
    for layer, kind in case.kinds.items():
        assert found[layer].kind == kind
    gradients = problem.gradients(list(case.matrices))
    for layer, (parameter, rule) in case.matrices.items():
        weight = case.parameters()[parameter]
        leaf = weight.clone().requires_grad_()
        (full,) = torch.autograd.grad(case.loss(case.outputs(parameter, leaf), case.target), leaf)
        matrix = rule(full)
        assert found[layer].shape == tuple(matrix.shape)
        torch.testing.assert_close(gradients[layer], matrix, rtol=1e-11, atol=1e-13)

        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        extra = (F.normalize(random(matrix.shape[i], 3), dim=0) for i in (0, 1))
        u, v = (torch.cat([a, b], 1) for a, b in zip((u, vh.T), extra, strict=True))
        d = directions(rule, weight.shape, u, v)
        for kind, dense in (("hessian", dense_hessian), ("ggn", dense_ggn)):
            b = dense(case, parameter)
            expected = torch.einsum("ki,ij,kj->k", d, b, d)
            scale = torch.linalg.matrix_norm(b, 2)
            for chunk in (None, 1, 3):
                problem._budget.chunk_size = chunk
                h = problem.curvatures(layer, u, v, kind)
                error = ((h - expected).abs() / (expected.abs() + 1e-3 * scale)).max()
                assert error <= TOLERANCE, (layer, kind, chunk)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_sparse_gradients_are_gradients(kind):
    torch.manual_seed(0)
    case = embedding()
    values = []
    for sparse in (False, True):
        case.model[0].sparse = sparse
        problem = CurvatureProblem(case.model, case.loss, [(*case.inputs, case.target)])
        gradient = problem.gradients(["0"])["0"]
        h = problem.curvatures("0", torch.eye(4).double(), torch.eye(5).double()[:, :4], kind)
        values.append(torch.cat([gradient.flatten(), h]))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-15)


def test_the_bytes_that_a_graph_keeps():
    x, w = random(7, 5), random(5, 3).requires_grad_()
    hidden = x @ w
    y = torch.tanh(hidden)
    # The product keeps x (and may keep the leaf w), tanh its result.
    assert saved_bytes([y]) in (8 * (35 + 21), 8 * (35 + 21 + 15))
    assert saved_bytes([y, hidden]) == saved_bytes([y])
    assert saved_bytes([y, y.sum()]) == saved_bytes([y])  # a sum keeps shapes only
    assert saved_bytes([x]) == 0


def test_the_bytes_of_what_is_no_longer_to_be_had():
    """Released by a backward pass, or changed in place."""
    w = random(5, 3).requires_grad_()
    y = torch.tanh(w)
    z = y.exp()
    z.sum().backward()
    assert saved_bytes([z]) == 0
    y = torch.tanh(w)
    y.zero_()
    assert saved_bytes([y]) == 0


def test_float32_is_near_float64():
    torch.manual_seed(0)
    case = block()
    exact = CurvatureProblem(case.model, case.loss, [(*case.inputs, case.target)])
    coarse = CurvatureProblem(
        case.model, case.loss, [(*case.inputs, case.target)], dtype=torch.float32
    )
    u, _, vh = torch.linalg.svd(exact.gradients(["up"])["up"], full_matrices=False)
    h, low = (p.curvatures("up", u, vh.T).double() for p in (exact, coarse))
    assert coarse.describe()["dtype"] == "float32" and low.dtype == torch.float64
    assert ((h - low).abs() / h.abs().max()).max() < 1e-4


def test_transposed_convolution_matrix_maps_one_position():
    """The (m, n) matrix of a transposed convolution is its linear map onto one output position."""
    layer = nn.ConvTranspose1d(3, 2, 3, bias=False).double()
    x = random(1, 3, 5)
    matrix = conv_transpose_group(0, 1)(layer.weight)
    patch = x[0, :, :3].flip(1)  # output position 2 sees inputs 2, 1, 0 through kernel 0, 1, 2
    torch.testing.assert_close(layer(x)[0, :, 2], matrix @ patch.flatten())
