"""Where a host's transformer block keeps its linear layers. One table; a host is recognised by structure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

LINEARS = ('qkv', 'proj', 'fc1', 'fc2')


@dataclass(frozen=True)
class HostFacts:
    """Paths of the linear layers inside a block; None where the host computes them without calling the module.

    Attributes:
        plain: attributes to set on a block so that it takes its plain path and calls its linears' ``forward``.
    """

    name: str
    qkv: str | None
    proj: str | None
    fc1: str
    fc2: str
    plain: Mapping[str, object] = field(default_factory=dict)

    def linear(self, block: nn.Module, target: str) -> tuple[nn.Module, str]:
        """The module that holds the linear ``target`` of ``block``, and its name in there.

        Raises:
            ValueError: if this host has no such linear or does not call its ``forward``.
        """
        path = getattr(self, target, None) if target in LINEARS else None
        if path is None:
            usable = [t for t in LINEARS if getattr(self, t) is not None]
            raise ValueError(
                f'{self.name} has no adjustable linear {target!r}; choose from {usable}.'
            )
        parent, _, name = path.rpartition('.')
        return block.get_submodule(parent), name


HOSTS = (
    HostFacts(
        'mmpretrain Swin', 'attn.w_msa.qkv', 'attn.w_msa.proj', 'ffn.layers.0.0', 'ffn.layers.1'
    ),
    HostFacts('mmpretrain ViT', 'attn.qkv', 'attn.proj', 'ffn.layers.0.0', 'ffn.layers.1'),
    HostFacts('timm ViT / Swin', 'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'),
    # Its attention reads the weights of qkv and proj itself, and its fast path in eval mode those of the MLP too.
    HostFacts(
        'torch.nn.TransformerEncoderLayer',
        None,
        None,
        'linear1',
        'linear2',
        {'activation_relu_or_gelu': 0},
    ),
)


def host_facts(block: nn.Module) -> HostFacts:
    """The entry of ``HOSTS`` whose paths all lead to linear layers of ``block``.

    Raises:
        ValueError: for an unknown block.
    """
    for facts in HOSTS:
        paths = [p for t in LINEARS if (p := getattr(facts, t))]
        if all(isinstance(_submodule(block, p), nn.Linear) for p in paths):
            return facts
    raise ValueError(
        f'No known host has blocks like {type(block).__module__}.{type(block).__qualname__}; known are '
        f'{[f.name for f in HOSTS]}. Pass facts=HostFacts(...) with the paths of its linear layers.'
    )


def _submodule(block: nn.Module, path: str) -> nn.Module | None:
    for name in path.split('.'):
        block = getattr(block, name, None)
    return block
