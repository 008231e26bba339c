"""Mask R-CNN and UPerNet whole, beside the stock detector of equal depth: training steps (pair 'detectors'), and one
image (pair 'latency').
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from ...compat import quiet
from ...core.adapters import Adjustment
from ...ops import deploy
from ...ops.window import image_layout, layout
from ...runner.resume import MAIN, seed_everything
from .cases import Case, Timed
from .loaders import DEMO, FAMILIES, Trainer, build_trainer, first_batch, make_images, read_leaf, shrink, training_step
from .parity import Parity, relative
from .settings import Settings

STEP_GOAL = 1.0  # of ours over the stock detector fully fine-tuned: the cheapest step there is for its depth
HOOK_GOAL = 0.01  # of a step
LATENCY_GOAL = 0.80
FIRST_GOAL = 1.02  # of the first image of a size over a later one
NEW = 'ours, a new size'
BATCH = 2  # as the configs have it
PARITY = 1e-4  # of the largest value of a backbone's map, fp32
PHASES = ('preprocess', 'backbone', 'heads', 'backward', 'update')
COMPARED = (('ours', 'stock'), ('ours', 'stock frozen'), ('ours all', 'stock'), ('stock frozen', 'stock'))


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


def build_variants(cfg: Config, device: str = 'cpu') -> dict[str, Trainer]:
    """Model and optimizer wrapper of every variant, all with the same weights:

    ``'stock'`` fully fine-tuned; ``'stock frozen'``, which trains what ours does but has no adapters; ``'ours'`` by the
    config's policy; ``'ours all'``, fully fine-tuned.
    """
    ours, wrapper = build_trainer(cfg, device)
    state, trained = deep_state(ours), {n for n, p in ours.named_parameters() if p.requires_grad}
    stock_cfg = stock_config(cfg, [len(m) for m in ours.backbone.layer_maps().values()])
    (stock, stock_wrapper), (frozen, _) = (build_trainer(stock_cfg, device) for _ in range(2))
    for model in (stock, frozen):
        model.load_state_dict({k: state[k] for k in model.state_dict()})
    for name, p in frozen.named_parameters():
        p.requires_grad_(name in trained)
    with quiet():
        frozen_wrapper = build_optim_wrapper(frozen, stock_cfg.optim_wrapper)
    whole_cfg = deepcopy(cfg)
    whole_cfg.optim_wrapper.paramwise_cfg.policy = dict(train='all')
    whole, whole_wrapper = build_trainer(whole_cfg, device)
    whole.load_state_dict(ours.state_dict())
    return {
        'stock': (stock, stock_wrapper),
        'stock frozen': (frozen, frozen_wrapper),
        'ours': (ours, wrapper),
        'ours all': (whole, whole_wrapper),
    }


@torch.no_grad()
def same_maps(stock: nn.Module, ours: nn.Module, device: str) -> list[Parity]:
    """The maps of both backbones, drop path off, adapters as they start."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(device)
    for backbone in (stock, ours):
        backbone.eval()
    theirs, mine = stock(images), ours(images)
    for backbone in (stock, ours):
        backbone.train()
    apart = [relative(*maps) for maps in zip(mine, theirs, strict=True)]
    return [Parity(f'map {i} of the stock backbone', d, bounds=(PARITY, PARITY)) for i, d in enumerate(apart)]


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


def trainers_and_batch(s: Settings, family: str, images: int) -> tuple[str, dict[str, Trainer], Mapping]:
    """The name, the variants and a batch of one detector or segmentor: the shipped Swin-T, or the demo's (smaller)."""
    demo = s.size != 'full'
    leaf, size = (DEMO[family], (64, 96)) if demo else (FAMILIES[family].leaf, (224, 320))
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), family, 4)
        # the demo's own data are of another layout; its model takes the same batch
        batch = first_batch(shrink(read_leaf(family, Path(folder)), *size), images)
        cfg = read_leaf(family, Path(folder), leaf)
    return Path(leaf).stem, build_variants(cfg if demo else shrink(cfg, *size), s.device), batch


def one_image(s: Settings, family: str) -> Timed:
    """From pixels to what is predicted, the library's own forward pass on both sides; adapters as they start."""
    name, trainers, batch = trainers_and_batch(s, family, 1)
    models = {side: trainers[side][0] for side in ('stock', 'ours')}
    parity = same_maps(models['stock'].backbone, models['ours'].backbone, s.device)
    for model in models.values():
        model.eval()
        deploy(model)

    def predict(model: nn.Module):
        with torch.inference_mode():
            return model.test_step(deepcopy(batch))

    backbones = {f'{side} backbone': partial(_maps, model, batch) for side, model in models.items()}

    def of_a_new_size():
        layout.cache_clear()
        image_layout.cache_clear()
        return predict(models['ours'])

    runs = {side: partial(predict, model) for side, model in models.items()} | backbones | {NEW: of_a_new_size}
    text = f'{name}: one image, ours over stock'
    anew = f'{name}: ours, the first image of a size over a later one'

    def share(times: Mapping[str, float]) -> float:
        return times['ours backbone'] / times['stock backbone']

    return Timed(
        runs,
        {
            text: lambda times: times['ours'] / times['stock'],
            f'{name}: its backbone alone': share,
            anew: lambda times: times[NEW] / times['ours'],
        },
        lambda: parity,
        bounds={text: LATENCY_GOAL, anew: FIRST_GOAL},
    )


@torch.inference_mode()
def _maps(model: nn.Module, batch: Mapping):
    return model.backbone(model.data_preprocessor(deepcopy(batch), False)['inputs'])


def whole_steps(s: Settings, family: str) -> Timed:
    """Of one detector or segmentor; and the seeding of ReseedHook, which every iteration of ours adds to its step
    (exact resume).
    """
    name, trainers, batch = trainers_and_batch(s, family, BATCH)
    named = {(a, b): f'{name}: step, {a} over {b}' for a, b in COMPARED}
    hooks = f'{name}: our hooks, an iteration'

    def notes() -> dict[str, str]:
        rounds = max(2, s.rounds // 2)
        found = {name: mean_phases(trainer, batch, rounds, s.device) for name, trainer in trainers.items()}
        return {
            text: 'seconds: ' + ', '.join(f'{p} {found[a][p]:.3f} ({found[b][p]:.3f})' for p in PHASES)
            for (a, b), text in named.items()
        }

    return Timed(
        {name: training_step(trainer, batch) for name, trainer in trainers.items()}
        | {'hooks': partial(seed_everything, MAIN, 0, 0, 0)},
        {text: lambda times, a=a, b=b: times[a] / times[b] for (a, b), text in named.items()}
        | {hooks: lambda times: times['hooks'] / times['ours']},
        partial(same_maps, trainers['stock'][0].backbone, trainers['ours'][0].backbone, s.device),
        bounds={named['ours', 'stock']: STEP_GOAL, hooks: HOOK_GOAL},
        notes=notes,
    )


def cases(pair: str, make: Callable[[Settings, str], Timed], s: Settings) -> list[Case]:
    return [Case(pair, pair, '', partial(make, s, family)) for family in DEMO]
