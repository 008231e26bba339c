"""A case of a pair: runs that are timed against each other, or figures that are counted; and its check of parity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import networks as models
from .goals import GOALS
from .parity import Net, Parity, compare, compare_deployed, compare_half
from .settings import Settings

Times = dict[str, float]  # seconds of one call in one round, by run


@dataclass
class Timed:
    """What is timed in one case."""

    runs: Mapping[str, Callable[[], object]]  # in the order of a round; with operations: '<side> <setting>'
    values: Mapping[str, Callable[[Times], float]]  # by setting: what is told of a round
    check: Callable[[], list[Parity]] = list  # compares what the sides compute
    operations: Mapping[str, int] = field(default_factory=dict)  # floating-point ones of a call, by side, if counted
    floor: float | None = None  # of the value
    repeats: int = 1  # calls that are timed at once, at least
    bounds: Mapping[str, float] = field(default_factory=dict)  # goals by setting, where the pair has none
    notes: Callable[[], Mapping[str, str]] = dict  # more to say, by setting; called after the timing


@dataclass
class Figure:
    """A value that is counted or measured elsewhere; ``bound`` is its goal where the pair has none."""

    value: float
    setting: str = ''
    floor: float | None = None
    told: dict[str, Any] = field(default_factory=dict)
    note: str = ''
    bound: float | None = None


@dataclass(frozen=True)
class Case:
    """One case of a pair; nothing is built before ``make`` is called."""

    pair: str
    name: str
    dtype: str
    make: Callable[[], Timed | list[Figure]]


def grid(
    pair: str, make: Callable, labels: Mapping[str, tuple[Any, tuple[int, ...]]], dtypes: tuple[str, ...] = ('fp32',)
) -> Callable[[Settings], list[Case]]:
    """The cases of a pair: ``make(settings, argument, dtype, batch)`` for each label, dtype and batch.

    Args:
        labels: label -> (argument, batch sizes on the CPU).
    """

    def cases(s: Settings) -> list[Case]:
        return [
            Case(pair, f'{label}, batch {batch}', dtype, partial(make, s, argument, dtype, batch))
            for label, (argument, sizes) in labels.items()
            for dtype in s.timed(*dtypes)
            for batch in s.batches(sizes)
        ]

    return cases


def versus(
    pair: str,
    peers: Mapping[str, Callable],
    ours: Mapping[str, Callable],
    operations: Mapping[str, int],
    check: Callable[[], list[Parity]],
) -> Timed:
    """Ours against the peer at each of its settings; compiled against compiled where both are there."""
    higher = GOALS[pair].better == 'higher'

    def value(setting: str, times: Times) -> float:
        form = setting.split()[-1]
        mine = times[f'ours {form if form in ours else "eager"}']
        theirs = times[f'peer {setting}']
        return theirs / mine if higher else mine / theirs

    runs = {f'{side} {k}': run for side, named in (('peer', peers), ('ours', ours)) for k, run in named.items()}
    floor = operations['ours'] / operations['peer']
    return Timed(runs, {k: partial(value, k) for k in peers}, check, operations, 1 / floor if higher else floor)


def agree(ours: Net, peer: Net | None, batch: Tensor, dtype: str, context: Callable, bare: bool = True) -> list[Parity]:
    """Ours in fp32, its adapters alive, with its plain reference, in training and in inference; then, in the dtype
    that is timed, with the peer.

    Args:
        peer: None where a network is timed beside itself.
        bare: the peer has no adapters, so that ours are set to zero.
    """
    alike, reference = models.in_fp32(ours), models.plain(ours)
    found = [compare('the plain reference', alike, reference, batch), compare_deployed(alike, reference, batch)]
    if peer is not None:
        if bare:
            models.zero_adapters(ours.model)
        if dtype == 'fp32':
            found.append(compare('the peer', ours, peer, batch, context))
        else:
            reference = models.plain(ours)
            found.append(compare_half(ours, peer, reference, batch, context))
            if next(ours.model.parameters()).dtype is not torch.float32:  # stored in it, as in inference
                found.append(compare_deployed(ours, reference, batch, peer, torch.linalg.vector_norm))
    return found
