"""Table X's parameters, counted from a Llama of Llama-3.2-1B's shape without weights, beside the printed figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ...core.flops import flop_counter, meta_parameters, without_adjustments
from ...models.counts import Cost
from ...ops import scale
from .paper_rows import Row
from .printed import TABLE_10, Printed
from .recount import beside

RANKS = (16, 32)  # the printed 1265 M lies between the two
# Llama-3.2-1B; its rotary scaling has no parameters and is left out.
SHAPE = dict(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
)


def llama_1b(scaling: dict[str, Any] | None = None) -> nn.Module:
    """The network, its weights without storage; scaled by the arguments of ``scalenet_mm.scale`` unless they are
    None.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    with meta_parameters():
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
        return model if scaling is None else scale(model, **scaling)


def table_10() -> Iterator[dict[str, Any]]:
    """The rows of Table X as ``recount.compute`` gives those of the others: FLOPs are of one token, no config.

    Between the base and ScaleNet's two ranks lies nothing that training changes, so the metrics are those printed.
    """
    yield _row('base', llama_1b(), TABLE_10['base'])
    for rank in RANKS:
        adjust = dict(type='ParallelAdapter', rank=rank)
        yield _row(f'ScaleNet r={rank}', llama_1b(dict(adjust=adjust)), TABLE_10['ScaleNet'])


def _row(variant: str, model: nn.Module, printed: Printed) -> dict[str, Any]:
    params, whole = sum(p.numel() for p in model.parameters()), flops_a_token(model)
    with without_adjustments(model):
        plain = flops_a_token(model)
    row = Row('X', 'Llama-3.2-1B', variant, '', None, **printed._asdict(), input_size=None)
    return beside(row, Cost(params, None, plain, whole, 0))


@torch.no_grad()
def flops_a_token(model: nn.Module) -> int:
    """Multiply-adds of the first token, which attends to itself alone; left on the meta device."""
    model = model.to('meta').eval()
    token = torch.zeros(1, 1, dtype=torch.long, device='meta')
    mask = torch.zeros(1, 1, 1, 1, device='meta')  # a whole mask: making one looks at values
    with flop_counter() as counter:
        model(token, attention_mask=mask, use_cache=False)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two
