"""Data and parameters of which each rank of a process group holds a part."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import spectral_core as sc
from spectral_adapters.torch_optim import SpectralNewton
from spectral_backends.torch import CurvatureProblem
from spectral_backends.torch.distributed.ranks import bits_of, find_board, identity_of

distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available():
    pytest.skip("this build has no torch.distributed", allow_module_level=True)

DATA = TensorDataset(torch.randn(37, 6), torch.arange(37) % 5)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 5))


@contextmanager
def process_group(size):
    """Be rank 0 of so many, of which the others never answer."""
    if size == 1:
        store = distributed.HashStore()
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    else:
        fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
        store = fake_pg.FakeStore()
        distributed.init_process_group("fake", store=store, rank=0, world_size=size)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def measured(model, batches=None):
    return CurvatureProblem(model, F.cross_entropy, batches or [DATA.tensors])


# Loaders


@pytest.mark.parametrize("batched", [False, True])
def test_a_sampler_that_keeps_to_one_part_is_named(batched):
    sampler = DistributedSampler(DATA, num_replicas=4, rank=1, shuffle=False)
    how = {"batch_sampler": BatchSampler(sampler, 4, False)} if batched else {"sampler": sampler}
    loader = DataLoader(DATA, **how if batched else how | {"batch_size": 4})
    with pytest.warns(UserWarning, match=r"DistributedSampler keeps to the part of rank 1 of 4"):
        problem = measured(network(), loader)
    assert problem.describe()["n_terms"] == 10  # of 40, with three counted twice


def test_a_sampler_of_one_part_that_is_all():
    sampler = DistributedSampler(DATA, num_replicas=1, rank=0, shuffle=False)
    with silence():
        measured(network(), DataLoader(DATA, 8, sampler=sampler))
        measured(network(), DataLoader(DATA, 8))


# Process groups


@pytest.mark.parametrize("size", [0, 1])
def test_one_process_has_nobody_to_compare_with(size):
    with silence():
        if size == 0:
            assert find_board() is None
            return
        with process_group(1):
            assert find_board() is None
            sc.measure(measured(network()), progress=False)


def test_a_group_without_a_store_is_told_once():
    with process_group(2):
        with pytest.warns(UserWarning, match="rank 0 of 2 .* cannot be told whether") as caught:
            problem = measured(network())
        with silence():
            sc.measure(problem, progress=False)
    assert len(caught) == 1


def test_parameters_are_identified_to_the_bit():
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        one = torch.randn(40, 30).to(dtype)
        other = one.clone()
        other[3, 4] = torch.nextafter(other[3, 4], other[3, 4] + 1)
        assert bits_of([one, one.clone(), one.T]) == 3 * bits_of([one]) != 3 * bits_of([other])
        assert identity_of([one, other]) != identity_of([one, one])
    assert bits_of([]) == []


# Parameters in parts


def flattened(use_orig_params, strategy="FULL_SHARD"):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return fsdp.FullyShardedDataParallel(
            network(),
            device_id=torch.device("cpu"),
            use_orig_params=use_orig_params,
            sharding_strategy=fsdp.ShardingStrategy[strategy],
        )


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_flat_shards_of_fsdp_are_named(use_orig_params):
    with process_group(2):
        model = flattened(use_orig_params)
        assert all(p.ndim == 1 for p in model.parameters())
        with pytest.warns(UserWarning, match="flat shards of matrices, as FullySharded") as caught:
            optimizer = SpectralNewton(model)
        assert [g["rule"] for g in optimizer.param_groups] == ["adamw"]
        named = [r["name"] for r in optimizer.routing_table() if "flat shard" in r["reason"]]
        assert f"params: {len(named)} of " in str(caught[0].message) and named[0] in str(
            caught[0].message
        )
        assert not any("bias" in name for name in named)
        with pytest.warns(UserWarning, match="flat shards"):
            SpectralNewton(model.parameters())
        with pytest.warns(UserWarning, match="flat shards"):
            SpectralNewton([{"params": list(model.named_parameters())}])
        with silence():  # for whoever says so
            SpectralNewton(model, route={"*": "adamw"})
            SpectralNewton([{"params": model.parameters(), "rule": "adamw"}])
        with pytest.raises(sc.InputError, match=r"flat shards .* get_model_state_dict"):
            measured(model)


def test_fsdp_that_shards_nothing_keeps_matrices():
    with process_group(1), silence():
        optimizer = SpectralNewton(flattened(True, "NO_SHARD"))
        assert [g["rule"] for g in optimizer.param_groups] == ["spectral", "adamw"]


def emptied(model):
    """As stage 3 of DeepSpeed's ZeRO leaves parameters between steps."""
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    return model


def cut(model):
    """As flat buffers are handed out in pieces."""
    for module in (model[0], model[3]):
        module.weight = nn.Parameter(module.weight.detach().flatten()[:11])
    return model


@pytest.mark.parametrize("how", [emptied, cut])
def test_shards_of_others_are_named(how):
    model = how(network())
    with pytest.warns(UserWarning, match=r"2 of 6, such as '0.weight' of shape \((0|11),\)"):
        SpectralNewton(model)
    with pytest.raises(sc.InputError, match="'0.weight' of shape .* flat shards"):
        measured(model)


def test_a_shard_beside_whole_matrices_is_named():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = nn.Linear(6, 5)
            self.part = nn.Linear(6, 5)
            self.part.weight = nn.Parameter(torch.ones(30))

        def forward(self, x):
            return self.whole(x) + F.linear(x, self.part.weight.view(5, 6), self.part.bias)

    with pytest.warns(UserWarning, match=r"model: 1 of its parameters, such as 'part.weight'"):
        assert [layer.name for layer in measured(Partly()).layers()] == ["whole"]


def test_vectors_of_a_models_own_are_no_shards():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.PReLU(8),
                          nn.BatchNorm1d(8), nn.Linear(8, 5)).eval()  # fmt: skip
    model.scale = nn.Parameter(torch.ones(5))
    with silence():
        SpectralNewton(model)
        SpectralNewton(model.parameters())
        measured(model)


def test_a_flat_buffer_in_the_place_of_matrices_is_refused():
    """DeepSpeed and Megatron put theirs into the groups once the optimizer is made."""
    optimizer = SpectralNewton(network())
    for group in optimizer.param_groups:
        flat = nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))
        flat.grad = torch.ones_like(flat)
        group["params"] = [flat]
    with pytest.raises(sc.InputError, match=r"a matrix has become a vector of shape \(48,\)"):
        optimizer.step()


def test_fully_sharded_models_are_refused():
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    with process_group(1):
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = fsdp.fully_shard(network(), mesh=mesh)
        with pytest.raises(
            sc.InputError, match=r"'0.weight' is sharded by fully_shard.*_state_dict"
        ):
            measured(model)
        with pytest.raises(sc.InputError, match=r"0\.weight of shape .* is a distributed tensor"):
            SpectralNewton(model)


def test_distributed_tensors_are_skipped_and_the_others_measured():
    parallel = pytest.importorskip("torch.distributed.tensor.parallel")
    with process_group(1):
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        whole = sc.measure(measured(network()), "3", progress=False)
        plan = parallel.ColwiseParallel(output_layouts=distributed.tensor.Replicate())
        model = parallel.parallelize_module(network(), mesh, {"0": plan})
        problem = measured(model)
        assert "distributed tensor" in problem.skipped()["0"]
        assert "get_model_state_dict" in problem.skipped()["0"]
        found = sc.measure(problem, progress=False)
        assert list(found) == ["3"]
        assert found["3"].alpha.exponent == pytest.approx(whole["3"].alpha.exponent, rel=1e-4)
