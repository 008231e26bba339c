"""P1 to P4: training steps and inference beside the stock networks of mmdet and timm."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from . import networks as models
from .cases import Case, Timed, agree, versus
from .networks import MM_STAGES, TIMM_STAGES
from .parity import Net
from .settings import DTYPES, Settings
from .steps import forward_pass, images, operations, precision, train_step

# ------------------------------------------------------------------------------- training steps


def _train(s: Settings, pair: str, name: str, dtype: str, batch: int, adapted: bool) -> Timed:
    ours = Net(models.our_swin(s, name, pyramid=True))
    stock = models.deep_peer(partial(models.mmdet_swin, s, name), ours.model, MM_STAGES, s.device)
    peer = Net(models.give_plain_adapters(stock, ours.model) if adapted else stock)
    batch_of, context = images(s, batch), precision(s, dtype)
    sides = _settings(s, ours, {'eager': peer})
    flops = {side: batch * operations(net.model, s.at.image, True) for side, net in (('peer', peer), ('ours', ours))}
    steps = [{k: train_step(net, batch_of, context) for k, net in nets.items()} for nets in sides]
    check = partial(agree, ours, peer, batch_of, dtype, context, not adapted)
    return versus(pair, *steps, flops, check)


def _settings(s: Settings, ours: Net, peers: Mapping[str, Net]) -> tuple[Mapping[str, Net], Mapping[str, Net]]:
    """Networks of both sides by setting; compiled ones where they are asked for."""
    if not s.compiled:
        return peers, {'eager': ours}
    names = {name: f'{name} compiled'.removeprefix('eager ') for name in peers}
    return (
        {**peers, **{names[k]: models.compiled(net) for k, net in peers.items()}},
        {'eager': ours, 'compiled': models.switched(ours, s.our_ops(compile=True))},
    )


def _steps(s: Settings, pair: str, adapted: bool) -> list[Case]:
    return [
        Case(pair, f'{name}, batch {batch}', dtype, partial(_train, s, pair, name, dtype, batch, adapted))
        for name, batches in (('Swin-T', ((4,), (64,))), ('Swin-S', ((2,), (64,))))
        for batch in s.batches(*batches)
        for dtype in s.timed('fp32')
    ]


def p1(s: Settings) -> list[Case]:
    return _steps(s, 'P1', adapted=False)


def p2(s: Settings) -> list[Case]:
    return _steps(s, 'P2', adapted=True)


# ------------------------------------------------------------------------------------ inference


def _pooled(output) -> torch.Tensor:
    return output[-1].mean((2, 3)) if output[-1].ndim == 4 else output[-1]


def _infer(s: Settings, pair: str, ours: nn.Module, peers: dict, host: str, dtype: str, batch: int) -> Timed:
    flops = {
        side: batch * operations(model, s.at.image, False) for side, model in (('peer', peers['eager']), ('ours', ours))
    }
    kind = DTYPES[dtype]
    net = Net(ours.to(kind), _pooled)
    rename = models.by_host_names(host)
    nets = {k: Net(model.to(kind), rename=rename) for k, model in peers.items()}
    batch_of = images(s, batch, kind)
    sides = _settings(s, net, nets)
    runs = [{k: forward_pass(n, batch_of) for k, n in nets_of.items()} for nets_of in sides]
    check = partial(agree, net, nets['eager'], batch_of, dtype, nullcontext)
    return versus(pair, *runs, flops, check)


def _p3(s: Settings, dtype: str, batch: int) -> Timed:
    ours = models.our_swin(s, 'Swin-T')
    build = partial(models.timm_swin, s, 'Swin-T')
    peers = {
        name: models.deep_peer(partial(build, fused=fused), ours, TIMM_STAGES, s.device)
        for name, fused in (('eager', False), ('fused', True))
    }
    return _infer(s, 'P3', ours, peers, 'swin', dtype, batch)


def _p4(s: Settings, dtype: str, batch: int) -> Timed:
    ours = models.our_deit(s, 'DeiT-B')
    peer = models.deep_peer(partial(models.timm_vit, s, 'DeiT-B'), ours, ['blocks'], s.device)
    return _infer(s, 'P4', ours, {'eager': peer}, 'deit', dtype, batch)


def p3(s: Settings) -> list[Case]:
    return [
        Case('P3', f'Swin-T, batch {batch}', dtype, partial(_p3, s, dtype, batch))
        for dtype in s.timed('fp32', 'bf16')
        for batch in s.batches((1, 8), (64,))
    ]


def p4(s: Settings) -> list[Case]:
    return [
        Case('P4', f'DeiT-B24, batch {batch}', dtype, partial(_p4, s, dtype, batch))
        for dtype in s.timed('fp32', 'bf16')
        for batch in s.batches((1, 8), (64,))
    ]
