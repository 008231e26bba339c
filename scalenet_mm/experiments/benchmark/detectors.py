"""Whole training steps of Mask R-CNN and UPerNet beside the stock detector of equal depth (pair 'detectors')."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import chain, pairwise
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn

from ...compat import quiet
from ...core.adapters import Adjustment
from ...runner.resume import MAIN, seed_everything
from .loaders import DEMO, FAMILIES, build_trainer, loader, make_images, read_leaf, shrink
from .startup import make_row
from .timing import Spread, interleaved

STEP_GOAL = 1.0  # of ours over the stock detector fully fine-tuned: the cheapest step there is for its depth
HOOK_GOAL = 0.01  # of a step
IMAGE = (224, 320)  # height and width
BATCH = 2  # as the configs have it
PARITY = 1e-4  # of the largest value of a backbone's map, fp32
Trainer = tuple[nn.Module, OptimWrapper]
PHASES = ('preprocess', 'backbone', 'heads', 'backward', 'update')


def stock_config(cfg: Config, depths: list[int]) -> Config:
    """The config with the framework's own Swin of these depths, fully fine-tuned by the framework's own constructor."""
    stock = deepcopy(cfg)
    backbone = stock.model.backbone
    backbone.pop('scale')
    backbone.type, backbone.depths = f'{cfg.default_scope}.SwinTransformer', depths
    stock.optim_wrapper.pop('constructor')
    stock.optim_wrapper.paramwise_cfg.pop('policy')
    return stock


def deep_state(model: nn.Module) -> dict[str, Tensor]:
    """What the network of independent copies holds: every instance's tensors, no adjustments."""
    added = {id(p) for m in model.modules() if isinstance(m, Adjustment) for p in m.parameters()}
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: t for name, t in named if id(t) not in added}


def with_policy(cfg: Config, policy: dict) -> Config:
    cfg = deepcopy(cfg)
    cfg.optim_wrapper.paramwise_cfg.policy = policy
    return cfg


def build_variants(cfg: Config, device: str = 'cpu') -> dict[str, Trainer]:
    """Model and optimizer wrapper of every variant, all with the same weights:

    ``'stock'`` fully fine-tuned; ``'stock frozen'``, which trains what ours does but has no adapters; ``'ours'`` by the
    config's policy; ``'ours all'``, fully fine-tuned.

    Raises:
        ValueError: if the stock backbone's maps differ from ours with untouched adapters.
    """
    ours, wrapper = build_trainer(cfg, device)
    state, trained = deep_state(ours), {n for n, p in ours.named_parameters() if p.requires_grad}
    stock_cfg = stock_config(cfg, [len(m) for m in ours.backbone.layer_maps().values()])
    built = {
        'stock': build_trainer(stock_cfg, device),
        'stock frozen': build_trainer(stock_cfg, device),
        'ours': (ours, wrapper),
        'ours all': build_trainer(with_policy(cfg, dict(train='all')), device),
    }
    for name in ('stock', 'stock frozen'):
        model = built[name][0]
        model.load_state_dict({k: state[k] for k in model.state_dict()})
    built['ours all'][0].load_state_dict(ours.state_dict())
    frozen = built['stock frozen'][0]
    for name, p in frozen.named_parameters():
        p.requires_grad_(name in trained)
    with quiet():
        built['stock frozen'] = frozen, build_optim_wrapper(frozen, stock_cfg.optim_wrapper)
    require_parity(built['stock'][0].backbone, ours.backbone, device)
    return built


@torch.no_grad()
def require_parity(stock: nn.Module, ours: nn.Module, device: str) -> None:
    """No speed without it: the same maps, drop path off, adapters as they start."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(device)
    for backbone in (stock, ours):
        backbone.eval()
    for i, (theirs, mine) in enumerate(zip(stock(images), ours(images))):
        apart = ((theirs - mine).abs().max() / theirs.abs().max()).item()
        if not apart <= PARITY:
            raise ValueError(
                f'Map {i} of the stock backbone and of ours differ by {apart:.1e} (at most {PARITY}); they are no '
                'equal networks, so their times are not compared.'
            )
    for backbone in (stock, ours):
        backbone.train()


def phase_seconds(model: nn.Module, wrapper, batch: Mapping, device: str) -> dict[str, float]:
    """Seconds of the parts of one training step, the parts of mmengine's ``train_step`` in its order."""

    def now() -> float:
        if device != 'cpu':
            torch.cuda.synchronize()
        return time.perf_counter()

    inside = []
    hooks = [
        model.backbone.register_forward_pre_hook(lambda *_: inside.append(now())),
        model.backbone.register_forward_hook(lambda *_: inside.append(now())),
    ]
    at = [now()]
    data = model.data_preprocessor(deepcopy(batch), True)
    at.append(now())
    with wrapper.optim_context(model):
        loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
    at.append(now())
    wrapper.backward(loss)
    at.append(now())
    wrapper.step()
    wrapper.zero_grad()
    at.append(now())
    for hook in hooks:
        hook.remove()
    backbone = inside[1] - inside[0]
    preprocess, forward, backward, update = (b - a for a, b in pairwise(at))
    return dict(zip(PHASES, (preprocess, backbone, forward - backbone, backward, update)))


def mean_phases(trainer: Trainer, batch: Mapping, rounds: int, device: str) -> dict[str, float]:
    found = [phase_seconds(*trainer, batch, device) for _ in range(rounds)]
    return {phase: sum(f[phase] for f in found) / rounds for phase in PHASES}


def hook_seconds(times: int = 200) -> float:
    """Seconds an iteration that our shipped hooks add: ReseedHook seeds every generator (exact resume)."""
    start = time.perf_counter()
    for i in range(times):
        seed_everything(MAIN, 0, i, 0)
    return (time.perf_counter() - start) / times


def family_rows(
    family: str, rounds: int, demo: bool = False, device: str = 'cpu', progress: Callable[[str], None] = print
) -> list[dict]:
    """Rows of one detector or segmentor.

    Args:
        family: ``'detection'`` or ``'segmentation'``.
        demo: of the small demo configs in their image size, else of the shipped Swin-T ones at ``IMAGE``.
    """
    leaf = DEMO[family] if demo else FAMILIES[family][0]
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), family, 4)
        size = (64, 96) if demo else IMAGE
        # the demo's own data are of another layout; its model trains on the same batch
        with loader(
            shrink(read_leaf(family, Path(folder)), *size), batch_size=BATCH, num_workers=0, persistent_workers=False
        ) as batches:
            batch = next(batches)
    cfg = read_leaf(family, Path(folder), leaf)
    if not demo:
        shrink(cfg, *size)
    trainers = build_variants(cfg, device)

    def step(name: str) -> Callable[[], object]:
        model, wrapper = trainers[name]
        return lambda: model.train_step(deepcopy(batch), wrapper)

    taken = interleaved(
        {name: step(name) for name in trainers},
        rounds,
        device,
        warmup=1,
        tick=lambda: progress(f'{leaf}: a round of {", ".join(trainers)}'),
    )
    spreads = {name: Spread.of([t[name] for t in taken]) for name in trainers}
    phases = {name: mean_phases(trainer, batch, max(2, rounds // 2), device) for name, trainer in trainers.items()}
    rows = []
    for name, peer, goal in (
        ('ours', 'stock', STEP_GOAL),
        ('ours', 'stock frozen', None),
        ('ours all', 'stock', None),
        ('stock frozen', 'stock', None),
    ):
        mine, theirs = spreads[name], spreads[peer]
        ratios = Spread.of([t[name] / t[peer] for t in taken])
        rows.append(
            make_row(
                'detectors',
                f'{Path(leaf).stem}: step, {name} over {peer}',
                theirs.median,
                mine.median,
                goal,
                note=f'ratio {ratios.low:.2f} to {ratios.high:.2f} in {rounds} rounds; '
                + ', '.join(f'{p} {phases[name][p]:.3f} ({phases[peer][p]:.3f})' for p in PHASES),
            )
        )
    seeding = hook_seconds()
    rows.append(
        make_row(
            'detectors',
            f'{Path(leaf).stem}: our hooks, an iteration',
            spreads['ours'].median,
            seeding,
            HOOK_GOAL,
            note='ReseedHook, beside a step of ours',
        )
    )
    return rows


def rows(
    quick: bool = False, rounds: int = 7, progress: Callable[[str], None] = print, device: str = 'cpu'
) -> list[dict]:
    """Rows of both families, see ``family_rows``; ``quick`` takes the demo configs."""
    return [row for family in DEMO for row in family_rows(family, rounds, quick, device, progress)]
