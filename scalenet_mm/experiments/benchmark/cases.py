"""A case of a pair: two sides, what is told of their times, and the check that they compute the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from . import networks as models
from .goals import GOALS
from .parity import Net, Parity, compare, compare_half

Times = dict[str, float]  # seconds of one call in one round, by run


@dataclass
class Timed:
    """What is timed in one case.

    Attributes:
        runs: by name, ``'<side> <setting>'``; the order of a round.
        values: by setting: what is told of a round.
        operations: floating-point operations of a call, by side.
        check: compares what the sides compute.
        floor: of the value.
        repeats: calls that are timed at once, at least.
    """

    runs: Mapping[str, Callable[[], object]]
    values: Mapping[str, Callable[[Times], float]]
    operations: Mapping[str, int]
    check: Callable[[], list[Parity]]
    floor: float | None = None
    repeats: int = 1


@dataclass
class Figure:
    """A value that is counted and not timed; ``bound`` is its goal where the pair has none."""

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

    floor = operations['ours'] / operations['peer']
    return Timed(
        {**{f'peer {name}': run for name, run in peers.items()}, **{f'ours {name}': run for name, run in ours.items()}},
        {setting: partial(value, setting) for setting in peers},
        operations,
        check,
        1 / floor if higher else floor,
    )


def agree(ours: Net, peer: Net | None, batch: Tensor, dtype: str, context: Callable, bare: bool = True) -> list[Parity]:
    """Ours in fp32, its adapters alive, with its plain reference; then, in the dtype that is timed, with the peer.

    Args:
        peer: None where a network is timed beside itself.
        bare: the peer has no adapters, so that ours are set to zero.
    """
    found = [compare('the plain reference', models.in_fp32(ours), models.plain(ours), batch)]
    if peer is not None:
        if bare:
            models.zero_adapters(ours.model)
        if dtype == 'fp32':
            found.append(compare('the peer', ours, peer, batch, context))
        else:
            found.append(compare_half(ours, peer, models.plain(ours), batch, context))
    return found
