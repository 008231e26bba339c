"""Input-dependent depth: a sample that is classified with confidence stops at a smaller depth. torch only.

The simplest form of what the paper calls dynamic weight sharing and leaves open. What it costs is counted in full: a
deeper run repeats whatever it cannot take over from the run before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .depth import Active, active_instances, depth_range, instances_at, replayed, skip_others
from .find import tower
from .flops import flop_counter, to_count

Prefix = tuple[tuple[str, int], ...]  # (container, instance), in the order of the network


@dataclass(frozen=True)
class Exits:
    """What ``EarlyExit`` returns for B samples.

    Attributes:
        logits: (B, ..., classes), of each sample those of the depth it stopped at.
        depth: (B,), where it stopped.
        multiply_adds: (B,), spent on it, all runs together.
    """

    logits: Tensor
    depth: Tensor
    multiply_adds: Tensor


@dataclass(frozen=True)
class Run:
    """One pass of a cascade.

    Attributes:
        depth: of the network.
        active: its instances.
        kept: those of them whose result is taken over from an earlier pass.
    """

    depth: int
    active: Active
    kept: Prefix


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The network's output, or the ``logits`` in it (Hugging Face)."""
    out = model(x)
    return getattr(out, 'logits', out)


def largest_probability(logits: Tensor) -> Tensor:
    """(B, ..., classes) -> (B,): the largest probability, on average over what is classified in a sample."""
    return logits.softmax(-1).amax(-1).flatten(1).mean(1) if logits.ndim > 2 else logits.softmax(-1).amax(-1)


class EarlyExit:
    """A scaled classifier that goes on to the next depth only with the samples it is not sure of.

    The part that two depths have in common from the first instance on is not computed again: in the stacked order that
    is the whole shallower network, in the interpolated order little.

    Args:
        model: in eval mode, with tied layers; what it returns must depend on the last layer alone (no multi-layer
            outputs), and the first dimension of inputs and blocks' outputs must be the sample.
        threshold: a sample stops at the first depth whose confidence reaches it; above 1, none does before the last.
        depths: of the passes, increasing; by default the smallest and the full one.
        predict: ``(model, inputs) -> logits (B, ..., classes)``.
        confidence: ``logits -> (B,)``.

    Raises:
        ValueError: if the depths do not increase within the network's range.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float,
        depths: Sequence[int] | None = None,
        predict: Callable[[nn.Module, Tensor], Tensor] = logits_of,
        confidence: Callable[[Tensor], Tensor] = largest_probability,
    ):
        self.model, self.threshold = model, threshold
        self.predict, self.confidence = predict, confidence
        self.runs = passes(model, depths)
        self._costs: dict[torch.Size, list[int]] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Exits:
        """Inputs (B, ...) -> ``Exits``; the network's depth is afterwards what it was.

        Raises:
            ValueError: if the network is in train mode, or its blocks do not put the samples first.
        """
        if self.model.training:
            raise ValueError(
                f'This {type(self.model).__name__} is in train mode, where drop-out and drop path change the logits '
                'from pass to pass; early exit needs model.eval() first.'
            )
        before = active_instances(self.model)
        left = torch.arange(len(x), device=x.device)
        states: dict[Prefix, Tensor] = {}
        logits = stopped = None
        try:
            for i, run in enumerate(self.runs):
                later = {r.kept for r in self.runs[i + 1 :] if r.kept}
                with self._captured(run, later) as found:
                    out = self._pass(run, x[left], states, left)
                for prefix, state in found.items():
                    if len(state) != len(left):
                        raise ValueError(
                            f'A block put out {tuple(state.shape)} for {len(left)} samples: early exit needs the '
                            'samples first (batch_first).'
                        )
                    states[prefix] = state.new_zeros(len(x), *state.shape[1:])
                    states[prefix][left] = state
                if logits is None:
                    logits, stopped = out.clone(), torch.zeros_like(left)
                logits[left], stopped[left] = out, i
                if i < len(self.runs) - 1:
                    left = left[~(self.confidence(out) >= self.threshold)]
                if not len(left):
                    break
        finally:
            skip_others(self.model, before)
        depths = torch.tensor([r.depth for r in self.runs], device=x.device)
        spent = torch.tensor(self.costs(x), device=x.device).cumsum(0)
        return Exits(logits, depths[stopped], spent[stopped])

    def _pass(self, run: Run, x: Tensor, states: Mapping[Prefix, Tensor], left: Tensor) -> Tensor:
        if not run.kept:
            skip_others(self.model, run.active)
            return self.predict(self.model, x)
        done = {n: tuple(i for m, i in run.kept if m == n) for n in run.active}
        with replayed(self.model, run.active, done, states[run.kept][left]):
            return self.predict(self.model, x)

    @contextmanager
    def _captured(self, run: Run, wanted: set[Prefix]) -> Iterator[dict[Prefix, Tensor]]:
        """Fills a dict with what this run puts out at the ends of the beginnings that later runs take over."""
        found: dict[Prefix, Tensor] = {}
        flat = flattened(run.active)
        with ExitStack() as stack:
            for prefix in wanted:
                if flat[: len(prefix)] == prefix and len(prefix) > len(run.kept):
                    name, i = prefix[-1]
                    block = self.model.get_submodule(name)[i]
                    stack.enter_context(block.register_forward_hook(partial(_keep, found, prefix)))
            yield found

    @torch.no_grad()
    def costs(self, x: Tensor) -> list[int]:
        """Multiply-adds of each pass for one sample like those in ``x``: what the passes compute, each counted anew."""
        if x.shape[1:] not in self._costs:
            before = active_instances(self.model)
            try:
                skip_others(self.model, self.runs[0].active)
                sample = x.new_zeros(1, *x.shape[1:])
                self.predict(self.model, sample)  # skipped blocks learn what others return
                self._costs[x.shape[1:]] = [self._cost(run, sample) for run in self.runs]
            finally:
                skip_others(self.model, before)
        return self._costs[x.shape[1:]]

    def _cost(self, run: Run, sample: Tensor) -> int:
        kept = set(run.kept)
        computed = {n: tuple(i for i in a if (n, i) not in kept) for n, a in run.active.items()}
        skip_others(self.model, computed)
        with flop_counter() as counter:
            self.predict(to_count(self.model), sample.to('meta'))
        return counter.get_total_flops() // 2


def passes(model: nn.Module, depths: Sequence[int] | None = None) -> list[Run]:
    """The passes of a cascade, each with what it takes over from the one before.

    Raises:
        ValueError: if the depths do not increase within the network's range.
    """
    low, high = depth_range(model)
    depths = [low, high] if depths is None else list(depths)
    if not depths or sorted(set(depths)) != depths:
        raise ValueError(f'depths must increase, from {low} to {high} at most, got {depths}.')
    runs: list[Run] = []
    flat: Prefix = ()
    for depth in depths:
        active = instances_at(model, depth)
        now = flattened(active)
        # the output of the last one stands for all only where each goes on from the one before: in one tower
        same = [a == b and tower(b[0]) == tower(now[0][0]) for a, b in zip(flat, now)]
        kept = now[: (*same, False).index(False)]
        runs.append(Run(depth, active, kept))
        flat = now
    return runs


def flattened(active: Active) -> Prefix:
    """The instances of all containers, in the order of the network."""
    return tuple((name, i) for name, instances in active.items() for i in instances)


def _keep(found: dict[Prefix, Tensor], prefix: Prefix, block: nn.Module, args, output) -> None:
    """A forward hook."""
    if isinstance(output, tuple) and any(isinstance(value, Tensor) for value in output[1:]):
        raise ValueError(
            f'{type(block).__name__} hands on more than its state, which early exit keeps alone: use set_depth.'
        )
    found[prefix] = output[0] if isinstance(output, tuple) else output
