"""One report on a scaled network: its layer map, parameters by role, FLOPs and saved size, beside two plain networks.

Everything is counted from built models (on the meta device), nothing from formulas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from ..backbones.scaled import UNSCALED, scaled_layers
from ..compat import read_config
from ..core.adapters import AdaptedLinear, Adjustment, Gate
from ..core.flops import INPUT_SIZE, count_flops, meta_parameters, without_adjustments
from ..core.hosts import LINEARS, host_facts
from ..core.roles import Count, Role, TrainPolicy, roles, total, unique_bytes
from ..core.tying import TiedLayers
from ..runner.config import trained_by
from .build import build


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


def inspect(model: str | Path, scale: dict | None = None, input_size: tuple[int, int] | None = None) -> Report:
    """Counts a scaled model, the unscaled one it is made from, and the deep one of independent copies.

    Args:
        model: short name or config file, as ``scalenet_mm.build`` takes them.
        scale: replaces the config's.
        input_size: (H, W) in pixels; by default the backbone's ``img_size``, or 224 x 224.

    Raises:
        ValueError: if the config's backbone is not a scaled one, or refuses images of that size.
    """
    with meta_parameters():
        net = build(model, scale).to('meta')
        layers = dict(scaled_layers(net))
        if not layers:
            raise ValueError(
                f"{model} has no layers that scalenet_mm made; its backbone must be of type='ScaleNetDeiT' or "
                "'ScaleNetSwin', "
                "or of type='ScaleNetTimm' or 'ScaleNetHF' (scale=dict(times=1, adjust=None) keeps it unscaled)."
            )
        unscaled = build(model, UNSCALED, **_source_outputs(net)).to('meta')
    part, _ = takes_images(net)
    size = input_size or _image_size(net)
    policy = train_policy(model)
    policy.apply(net)
    try:
        cost = measure(net, size)
    except (AssertionError, RuntimeError) as e:  # how hosts refuse an input
        height, width = size
        raise ValueError(f'{model} does not take images of {height} x {width}: {e}') from e
    counts = by_role_and_use(net)
    trainable = total(counts.values()).trainable
    networks = {
        'this network': replace(cost, trainable=trainable),
        'unscaled network': measure(unscaled, size),
        'unshared deep network': unshared(net, cost),
    }
    return Report(str(model), size, part, policy, layers, counts, networks)


def _source_outputs(model: nn.Module) -> dict[str, list[int]]:
    """``out_indices`` of the unscaled network, where the model's count scaled layers and not stages."""
    backbone = getattr(model, 'backbone', model)
    containers, given = scaled_layers(backbone), getattr(backbone, 'out_indices', None)
    if len(containers) != 1 or given is None:
        return {}
    sources = containers[0][1].layer_map.sources
    return dict(out_indices=sorted({sources[i] for i in given}))


def takes_images(model: nn.Module) -> tuple[str, nn.Module]:
    """The part whose forward needs images alone: a classifier or bare backbone whole, a detector's backbone."""
    from mmpretrain.models import BaseClassifier

    if isinstance(model, BaseClassifier) or not hasattr(model, 'backbone'):
        return 'model', model
    return 'backbone', model.backbone


def _image_size(model: nn.Module) -> tuple[int, int]:
    backbone = getattr(model, 'backbone', model)
    size = getattr(backbone, 'img_size', INPUT_SIZE)
    return (size, size) if isinstance(size, int) else tuple(size)


def train_policy(model: str | Path) -> TrainPolicy:
    """What a config trains; increments where there is no config."""
    if not Path(model).is_file() and '::' not in str(model):
        return TrainPolicy()
    return trained_by(read_config(model))


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
    return Cost(params, None, cost.flops, cost.flops, sum(_bytes(t) for m in modules for t in _own_tensors(m)))


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    own = module._parameters | module._buffers
    saved = own.keys() - module._non_persistent_buffers_set
    return (own[name] for name in saved if own[name] is not None)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def by_role_and_use(model: nn.Module) -> dict[tuple[Role, int], Count]:
    """Unique parameters by role and number of modules that hold them; see ``roles.count``."""
    found = roles(model)
    uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    table: dict[tuple[Role, int], Count] = {}
    for name, p in model.named_parameters():
        key, n = (found[name], uses[id(p)]), p.numel()
        one = Count(1, n, n if p.requires_grad else 0, n * uses[id(p)])
        table[key] = table.get(key, Count()) + one
    return {k: table[k] for k in sorted(table, key=lambda k: (list(Role).index(k[0]), k[1]))}


def adjustments(layers: TiedLayers) -> list[dict[str, str]]:
    """The adjustments of every instance: ``{'fc1': 'ParallelAdapter(rank=16, act=GELU)', ...}``."""
    return [_adjustments_of(block) for block in layers]


def _adjustments_of(block: nn.Module) -> dict[str, str]:
    facts = host_facts(block)
    found = {}
    for target in LINEARS:
        for path in facts.paths(target):
            linear = block.get_submodule(path)
            if isinstance(linear, AdaptedLinear):
                parts = [p for p in (linear.gate, linear.adapter) if p is not None]
                label = target if len(facts.paths(target)) == 1 else path.rpartition('.')[2]
                found[label] = ' + '.join(
                    'Gate' if isinstance(p, Gate) else f'{type(p).__name__}({p.extra_repr()})' for p in parts
                )
    return found
