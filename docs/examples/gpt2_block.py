"""One block of a GPT-2-small-sized network, measured exactly: 124 M parameters, random weights.

::

    python docs/examples/gpt2_block.py --output gpt2_block.json

Exact Hessian curvature along the top 20 singular directions of each matrix of one block (query,
key, value, output, up and down projection, by default of block 6), on 256 tokens. Prints the
report, the engine with its cost, and the most memory that the process held.
"""

import argparse
import resource
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spectral_core as sc
from spectral_backends.torch import CurvatureProblem


class Block(nn.Module):
    """Pre-norm attention and feed-forward, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of x."""
        q, k, v = (
            F.linear(self.norm1(x), weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for weight, bias in zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Tokens to logits, with the head tied to the embedding."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, vocabulary, T), as `cross_entropy` takes them."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token.weight).transpose(1, 2)


def main() -> None:
    """Build, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--output", default="gpt2_block.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = (97, 64, 24, 2, 3) if options.small else (50257, 1024, 768, 12, 12)
    model = GPT(*sizes).eval()
    block = min(options.block, sizes[-1] - 1)
    tokens = torch.randint(sizes[0], (1, min(options.tokens, sizes[1]) + 1))
    batches = [(tokens[:, :-1], tokens[:, 1:])]
    # One direction's logits alone are 51 MB here.
    problem = CurvatureProblem(model, F.cross_entropy, batches, memory_budget=2**30)
    start = time.perf_counter()
    report = sc.measure(problem, f"blocks.{block}.*", top_k=20)
    seconds = time.perf_counter() - start
    print(report)
    report.save(options.output)
    parameters = sum(p.numel() for p in model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    certificate = next(iter(report.values())).certificate
    assert certificate is not None
    print(
        f"\n{parameters / 1e6:.0f} M parameters, {len(report)} matrices, "
        f"{sum(len(s.sigma) for s in report.values())} directions in {seconds:.0f} s by "
        f"{certificate.engine}; {certificate.cost:.2f} forward passes of work each (predicted "
        f"{certificate.predicted_cost:.2f}); at most {peak:.1f} GiB held"
    )


if __name__ == "__main__":
    main()
