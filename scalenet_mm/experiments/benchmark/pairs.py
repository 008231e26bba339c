"""P1 to P4: training steps and inference beside the stock networks of mmdet and timm."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from ...checkpoint.dialects import to_host
from . import networks as models
from .cases import Timed, agree, versus
from .networks import TIMM_STAGES
from .parity import Net
from .settings import DTYPES, Settings
from .steps import forward_pass, images, operations, precision, train_step


def training(pair: str, s: Settings, name: str, dtype: str, batch: int) -> Timed:
    """P1 and P2, whose peer has plain adapters and is frozen alike."""
    ours, stock = models.beside_mmdet(s, name)
    adapted = pair == 'P2'
    peer = Net(models.give_plain_adapters(stock, ours.model) if adapted else stock)
    batch_of, context = images(s, batch), precision(s, dtype)
    steps = [
        {k: train_step(net, batch_of, context) for k, net in nets.items()}
        for nets in _settings(s, ours, {'eager': peer})
    ]
    flops = operations(s, {'peer': peer.model, 'ours': ours.model}, batch, train=True)
    return versus(pair, *steps, flops, partial(agree, ours, peer, batch_of, dtype, context, not adapted))


def _settings(s: Settings, ours: Net, peers: Mapping[str, Net]) -> tuple[Mapping[str, Net], Mapping[str, Net]]:
    """Networks of both sides by setting; compiled ones where they are asked for."""
    if not s.compiled:
        return peers, {'eager': ours}
    names = {name: f'{name} compiled'.removeprefix('eager ') for name in peers}
    return (
        {**peers, **{names[k]: models.compiled(net) for k, net in peers.items()}},
        {'eager': ours, 'compiled': models.switched(ours, s.our_ops(compile=True))},
    )


def _pooled(output) -> torch.Tensor:
    return output[-1].mean((2, 3)) if output[-1].ndim == 4 else output[-1]


def _inference(
    pair: str, s: Settings, ours: nn.Module, peers: dict[str, nn.Module], host: str, dtype: str, batch: int
) -> Timed:
    flops = operations(s, {'peer': peers['eager'], 'ours': ours}, batch, train=False)
    kind = DTYPES[dtype]
    net, batch_of = Net(ours.to(kind), _pooled), images(s, batch, kind)
    # gradients are laid out as the weights are, so they come under our names as these do
    nets = {k: Net(model.to(kind), rename=partial(to_host, host=host)) for k, model in peers.items()}
    runs = [{k: forward_pass(n, batch_of) for k, n in nets_of.items()} for nets_of in _settings(s, net, nets)]
    return versus(pair, *runs, flops, partial(agree, net, nets['eager'], batch_of, dtype, nullcontext))


def beside_timm_swin(s: Settings, name: str, dtype: str, batch: int) -> Timed:
    """P3."""
    ours = models.our_swin(s, name)
    peers = {
        setting: models.deep_peer(partial(models.timm_swin, s, name, fused=fused), ours, TIMM_STAGES, s.device)
        for setting, fused in (('eager', False), ('fused', True))
    }
    return _inference('P3', s, ours, peers, 'swin', dtype, batch)


def beside_timm_vit(s: Settings, name: str, dtype: str, batch: int) -> Timed:
    """P4."""
    ours = models.our_deit(s, name)
    peer = models.deep_peer(partial(models.timm_vit, s, name), ours, ['blocks'], s.device)
    return _inference('P4', s, ours, {'eager': peer}, 'deit', dtype, batch)
