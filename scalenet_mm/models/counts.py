"""One report on a scaled network: its layer map, parameters by role, FLOPs and saved size, beside two plain networks.

Everything is counted from built models (on the meta device), nothing from formulas.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmengine.config import Config
from torch import nn

from ..backbones.scaled import UNSCALED, source_outputs
from ..compat import read_config
from ..core.adapters import AdaptedLinear, Adjustment, Gate
from ..core.flops import INPUT_SIZE, count_flops, meta_parameters, without_adjustments
from ..core.hosts import LINEARS, host_facts
from ..core.roles import Count, Role, TrainPolicy, count_by_use, total, unique_bytes
from ..core.tying import TiedLayers, persistent, scaled_layers
from ..runner.config import trained_by
from .build import build, names_config


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        params: unique parameters.
        trainable: those of them that are trained; None where nobody said.
        flops: multiply-adds of one image, adjustments left out, as in the paper.
        flops_with_adjustments: multiply-adds of one image.
        bytes: of the tensors in a saved file.
    """

    params: int
    trainable: int | None
    flops: int
    flops_with_adjustments: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """All that ``scalenet inspect`` prints."""

    model: str
    input_size: tuple[int, int]
    flops_of: str  # the part of the model that takes images by itself
    policy: TrainPolicy
    layers: dict[str, TiedLayers]
    roles: dict[tuple[Role, int], Count]
    networks: dict[str, Cost]

    def to_json(self) -> dict:
        """Plain types; FLOPs as whole multiply-adds, sizes in bytes."""
        return dict(
            model=self.model,
            input_size=list(self.input_size),
            flops_of=self.flops_of,
            policy=dict(train=self.policy.train, also=list(self.policy.also)),
            layer_maps={name: list(layers.layer_map.sources) for name, layers in self.layers.items()},
            adjustments={name: adjustments(layers) for name, layers in self.layers.items()},
            roles=[dict(role=str(role), used_by=uses, **asdict(c)) for (role, uses), c in self.roles.items()],
            networks={name: asdict(cost) for name, cost in self.networks.items()},
        )


def inspect(model: str | Path | Config, scale: dict | None = None, input_size: tuple[int, int] | None = None) -> Report:
    """Counts a scaled model, the unscaled one it is made from, and the deep one of independent copies.

    Args:
        model: short name, config file or config, as ``scalenet_mm.build`` takes them.
        scale: replaces the config's.
        input_size: (H, W) in pixels; by default the backbone's ``img_size``, or 224 x 224.

    Raises:
        ValueError: if the config's backbone is not a scaled one, or refuses images of that size.
    """
    called = model.filename if isinstance(model, Config) else model
    with meta_parameters():
        net = build(model, scale).to('meta')
        layers = dict(scaled_layers(net))
        if not layers:
            raise ValueError(
                f"{called} has no layers that scalenet_mm made; its backbone must be of type='ScaleNetDeiT' or "
                "'ScaleNetSwin', "
                "or of type='ScaleNetTimm' or 'ScaleNetHF' (scale=dict(times=1, adjust=None) keeps it unscaled)."
            )
        unscaled = build(model, UNSCALED, **source_outputs(getattr(net, 'backbone', net))).to('meta')
    part, _ = takes_images(net)
    side = getattr(getattr(net, 'backbone', net), 'img_size', INPUT_SIZE)
    size = input_size or ((side, side) if isinstance(side, int) else tuple(side))
    policy = train_policy(model)
    policy.apply(net)
    try:
        cost = measure(net, size)
    except (AssertionError, RuntimeError) as e:  # how hosts refuse an input
        height, width = size
        raise ValueError(f'{called} does not take images of {height} x {width}: {e}') from e
    counts = count_by_use(net)
    trainable = total(counts.values()).trainable
    networks = {
        'this network': replace(cost, trainable=trainable),
        'unscaled network': measure(unscaled, size),
        'unshared deep network': unshared(net, cost),
    }
    return Report(str(called), size, part, policy, layers, counts, networks)


def takes_images(model: nn.Module) -> tuple[str, nn.Module]:
    """The part whose forward needs images alone: a classifier or bare backbone whole, a detector's backbone."""
    from mmpretrain.models import BaseClassifier

    if isinstance(model, BaseClassifier) or not hasattr(model, 'backbone'):
        return 'model', model
    return 'backbone', model.backbone


def train_policy(model: str | Path | Config) -> TrainPolicy:
    """What a config trains; increments where there is no config."""
    return trained_by(read_config(model)) if names_config(model) else TrainPolicy()


def measure(model: nn.Module, input_size: tuple[int, int] = INPUT_SIZE) -> Cost:
    """Counts a built model; ``trainable`` is left open."""
    _, part = takes_images(model)
    params = sum(p.numel() for p in model.parameters())
    with_adjustments = plain = count_flops(part, input_size)
    if any(isinstance(m, Adjustment) for m in model.modules()):
        with without_adjustments(part):
            plain = count_flops(part, input_size)
    return Cost(params, None, plain, with_adjustments, unique_bytes(model))


def unshared(model: nn.Module, cost: Cost) -> Cost:
    """The plain deep network: every layer instance with tensors of its own, without adjustments."""
    modules = [m for m in model.modules() if not isinstance(m, Adjustment)]
    params = sum(p.numel() for m in modules for p in m.parameters(recurse=False))
    saved = (t for m in modules for t in (m._parameters | persistent(m)).values() if t is not None)
    return Cost(params, None, cost.flops, cost.flops, sum(t.nbytes for t in saved))


def adjustments(layers: TiedLayers) -> list[dict[str, str]]:
    """The adjustments of every instance: ``{'fc1': 'ParallelAdapter(rank=16, act=GELU)', ...}``."""
    found: list[dict[str, str]] = []
    for block in layers:
        facts = host_facts(block)
        found.append({})
        for target, path in ((t, path) for t in LINEARS for path in facts.paths(t)):
            linear = block.get_submodule(path)
            if isinstance(linear, AdaptedLinear):
                parts = [p for p in (linear.gate, linear.adapter) if p is not None]
                label = target if len(facts.paths(target)) == 1 else path.rpartition('.')[2]
                found[-1][label] = ' + '.join(
                    'Gate' if isinstance(p, Gate) else f'{type(p).__name__}({p.extra_repr()})' for p in parts
                )
    return found
