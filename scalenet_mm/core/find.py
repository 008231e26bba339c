"""Where a live network keeps its blocks: one list, or one a stage. torch only."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from .hosts import HostFacts, holds_blocks, host_facts, unknown
from .tying import MappedLayers, is_norm


def blocks_of(model: nn.Module, facts: HostFacts | None = None) -> dict[str, nn.Module]:
    """The containers of blocks of a network, by name: one, or one a stage.

    Raises:
        ValueError: if there is none, or a network is scaled already.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, MappedLayers):
            raise ValueError(
                f'{name} of this {type(model).__name__} is scaled already; scale the source network once, with the '
                'whole map: sources=[...] or a larger times.'
            )
        if any(name.startswith(f'{outer}.') for outer in found):
            continue
        listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 0
        if listed and (all(map(facts.fits, module)) if facts else holds_blocks(module)):
            found[name] = module
    if '' in found:
        raise ValueError('Scale the network that holds these layers, or use scale_layers on them.')
    if not found:
        lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m)]
        largest = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=[model])
        raise unknown(largest[0], f'No list of blocks of a known host was found in {type(model).__name__}')
    return found


def tower(name: str) -> str:
    """What the containers of one tower have in common: their paths but for the numbers of stages. The first number of a
    path is that of a network, where it has more behind it: a list of networks.

    >>> tower('layers.0.blocks') == tower('layers.1.blocks'), tower('0.blocks') == tower('1.blocks')
    (True, False)
    """
    first, dot, rest = name.partition('.')
    return f'{first}.{tower(rest)}' if dot and first.isdecimal() else re.sub(r'\d+', '*', name)


def _stages(
    stages: str | int | Iterable[int | str] | None, everything: dict[str, nn.Module]
) -> tuple[dict[str, nn.Module], list[int]]:
    """The containers of the tower (or towers) that ``stages`` names, and the indices in it of those that are scaled.

    Stages of one tower have the same path but for their numbers.
    """
    names = list(everything)
    towers = {name: tower(name) for name in names}
    if stages is None and len(set(towers.values())) > 1:
        kinds = {n: f'{len(b)} x {type(b[0]).__name__}' for n, b in everything.items()}
        raise ValueError(
            f'This network has several lists of blocks that are no stages of one another: {kinds}. Say which are '
            f'scaled: stages=[{names[0]!r}].'
        )
    if stages is None:
        given = names[-1:]
    elif isinstance(stages, str):
        given = names if stages == 'all' else [stages]
    else:
        given = [stages] if isinstance(stages, int) else list(stages)  # type: ignore[list-item]
    wrong = [s for s in given if s not in names and s not in range(len(names))]
    if wrong or not given:
        raise ValueError(
            f"stages must be 'all', or indices or names out of {dict(enumerate(names))}, got {wrong or given}."
        )
    given = [s if isinstance(s, str) else names[s] for s in given]
    touched = {towers[name] for name in given}
    found = {name: everything[name] for name in names if towers[name] in touched}
    return found, [i for i, name in enumerate(found) if name in given]


def _require_one_width(name: str, blocks: nn.Module, facts: HostFacts | None) -> None:
    """A block whose input or output is wider than another's stands at its own place only."""
    widths = {}
    for i, block in enumerate(blocks):
        known = facts or host_facts(block)
        fc1, fc2 = (next(map(block.get_submodule, known.paths(t)), None) for t in ('fc1', 'fc2'))
        first = next((tuple(p.shape) for m in block.children() if is_norm(m) for p in m.parameters()), None)
        widths.setdefault((first, fc1 and fc1.in_features, fc2 and fc2.out_features), i)
    if len(widths) > 1:
        raise ValueError(
            f'The layers of {name!r} change their width (first norms, MLPs from and to: {list(widths)}, first in '
            f'layers {list(widths.values())}), '
            'so copies of them would not fit one another; only lists of one width can be scaled.'
        )
