"""P6 to P8: what is counted and not timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ...checkpoint.assemble import make_delta
from ...checkpoint.delta_file import SUFFIX
from ...checkpoint.loading import build_model
from ...compat import read_config
from ...ops import set_ops
from ...runner.config import trained_by
from . import networks as models
from .cases import Figure
from .memory import peak_of_fresh_process, saved_bytes, state_bytes
from .parity import Net, objective
from .settings import Settings
from .steps import images, precision, train_step

MEGA = 2**20
HEADER = 64 * 1024  # bytes that P8 grants a file beside its tensors
OURS = {  # P6: settings of ours: its switches
    '': {},
    'recompute': dict(recompute=True),  # the default on a CPU
    'recompute attention': dict(recompute='attention'),
    'recompute nothing': dict(recompute=False),
}
PEER = 'peer'


def training_net(s: Settings, name: str, side: str) -> Net:
    """mmdet's Swin (``'peer'``), or ours with one of ``OURS``."""
    if side == PEER:
        return Net(models.beside_mmdet(s, name)[1])
    return Net(set_ops(models.our_swin(s, name, pyramid=True), s.our_ops(**OURS[side])).train())


def one_step(s: Settings, name: str, side: str, dtype: str, batch: int) -> Callable[[], None]:
    """A training step, for a process of its own."""
    return train_step(training_net(s, name, side), images(s, batch), precision(s, dtype))


def saved_by(s: Settings, name: str, side: str, dtype: str, batch: int) -> dict[str, int | None]:
    """Bytes that a forward pass of a training step saves, and the growth of a process (GPU: the allocator's peak)."""
    net, batch_of, context = (training_net(s, name, side), images(s, batch), precision(s, dtype))

    def forward() -> torch.Tensor:
        with context():
            return objective(net(batch_of))

    forward()  # fills the caches of constants
    found: dict[str, int | None] = dict(saved=saved_bytes(forward))
    if s.device == 'cuda':
        step = train_step(net, batch_of, context)
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        found['peak'] = torch.cuda.max_memory_allocated() - before
    elif s.at.rss:
        found['peak'] = peak_of_fresh_process(one_step, s, name, side, dtype, batch)
    return found


def activations(s: Settings, name: str, dtype: str, batch: int) -> list[Figure]:
    """P6."""
    theirs = saved_by(s, name, PEER, dtype, batch)
    figures = []
    for setting in OURS:
        mine = saved_by(s, name, setting, dtype, batch)
        told = {'ours': mine, 'peer': theirs}
        note = f'{mine["saved"] / MEGA:.1f} of {theirs["saved"] / MEGA:.1f} MB saved'
        if mine.get('peak') and theirs.get('peak'):
            told['peak ratio'] = mine['peak'] / theirs['peak']
            what = 'allocator peak' if s.device == 'cuda' else "a fresh process's growth"
            note += f'; {what} in a step {told["peak ratio"]:.2f}'
        figures.append(Figure(mine['saved'] / theirs['saved'], setting, told=told, note=note))
    return figures


def state(s: Settings, name: str) -> list[Figure]:
    """P7: what training keeps between two steps."""
    figures, depths = [], [len(m) for m in models.our_deit(s, name).layer_maps().values()]
    theirs = _state_after_a_step(s, models.mmpretrain_vit(s, name, depths).to(s.device))
    for setting, switches in {'': {}, 'bf16 frozen': dict(weights='bfloat16')}.items():
        mine = _state_after_a_step(s, set_ops(models.our_deit(s, name), s.our_ops(**switches)))
        note = f'{sum(mine.values()) / MEGA:.0f} of {sum(theirs.values()) / MEGA:.0f} MB'
        ratio = sum(mine.values()) / sum(theirs.values())
        figures.append(Figure(ratio, setting, told=dict(ours=mine, peer=theirs), note=note))
    return figures


def _state_after_a_step(s: Settings, model: nn.Module) -> dict[str, int]:
    """Bytes of weights, gradients and AdamW's state after a step on a tiny image (the position embedding adapts)."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.train()
    objective(Net(model)(torch.randn(1, 3, 32, 32, device=s.device))).backward()
    optimizer.step()
    return state_bytes(model, optimizer)


def over_trainable(file: int, trainable: int) -> float:
    """Bytes of a delta file, less what its header may take, over the bytes it carries."""
    return (file - HEADER) / trainable


def delta_size(config: str) -> list[Figure]:
    """P8."""
    cfg = read_config(config)
    model = build_model(cfg)
    trained = trained_by(cfg).apply(model)
    weights = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'model{SUFFIX}'
        make_delta(weights, trained, model, str(cfg.load_from), cfg.pretty_text).save(path)
        size = path.stat().st_size
    trainable = sum(weights[name].nbytes for name in trained)
    told, note = dict(file=size, trainable=trainable), f'{size:,} bytes for {trainable:,}'
    return [Figure(over_trainable(size, trainable), floor=1.0, told=told, note=note)]
