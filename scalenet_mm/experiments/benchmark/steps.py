"""What is timed: one training step, one forward pass; and the multiply-adds in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...core.flops import on_meta
from ...ops import deploy, set_ops
from .parity import Net, objective
from .settings import DTYPES, Settings

RATE = 1e-6  # learning rate: a step does all its work and moves the weights little


def images(s: Settings, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, 3, H, W), the same in every run."""
    generator = torch.Generator().manual_seed(1)
    made = torch.randn(batch, 3, s.at.image, s.at.image, generator=generator)
    return made.to(s.device, dtype)


def precision(s: Settings, dtype: str) -> Callable[[], AbstractContextManager]:
    """The context of a training step's forward pass: mixed precision for bf16, nothing for fp32."""
    if dtype == 'fp32':
        return nullcontext
    return partial(torch.autocast, s.device, DTYPES[dtype])


def train_step(net: Net, batch: Tensor, context: Callable = nullcontext) -> Callable[[], None]:
    """Forward, loss, backward and AdamW on what the network trains."""
    params = [p for p in net.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=RATE)
    net.model.train()

    def step() -> None:
        optimizer.zero_grad()
        with context():
            loss = objective(net(batch))
        loss.backward()
        optimizer.step()

    return step


def forward_pass(net: Net, batch: Tensor) -> Callable[[], object]:
    """Inference of a deployed network."""
    net.model.eval()
    deploy(net.model)

    def run():
        with torch.inference_mode():
            return net(batch)

    return run


def operations(s: Settings, models: Mapping[str, nn.Module], batch: int, train: bool) -> dict[str, int]:
    """Floating-point operations of a batch: two for each multiply-add of the plain network, frozen as it is.

    Counted by torch on the meta device; what the backward pass does not compute is not counted.
    """
    found, pixels = {}, torch.zeros(1, 3, s.at.image, s.at.image, device='meta')
    for name, model in models.items():
        meta = Net(set_ops(on_meta(model), 'plain'))
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
            loss = objective(meta(pixels))
            if train:
                loss.backward()
        found[name] = batch * counter.get_total_flops()
    return found
