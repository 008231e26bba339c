"""Which source layer each layer of the scaled network uses: g(l') of Eq. 5. Pure Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

ORDERS = ('stack', 'interpolate')


@dataclass(frozen=True)
class LayerMap:
    """The source layer of every layer instance of a scaled network, both 0-based.

    The *owner* of a source is its first instance; the shared tensors are saved, counted and optimised
    under the owner's name.

    >>> LayerMap.build(4, times=2, order='stack')
    LayerMap(sources=(0, 1, 2, 3, 0, 1, 2, 3))
    >>> LayerMap.build(3, times=2, order='interpolate').owners
    (0, 2, 4)
    """

    sources: tuple[int, ...]

    def __post_init__(self):
        sources = tuple(int(s) for s in self.sources)
        object.__setattr__(self, 'sources', sources)
        depth = max(sources, default=-1) + 1
        unused = sorted(set(range(depth)) - set(sources))
        if not sources or min(sources) < 0 or unused:
            raise ValueError(
                f'A layer map must use every source layer 0..{depth - 1} at least once, but {list(sources)} '
                f'{"is empty" if not sources else f"leaves out {unused} or holds a negative index"}; '
                'list every layer of the pretrained network at least once.'
            )
        if sorted(sources) == list(range(depth)) != list(sources):
            raise ValueError(
                f'The layer map {list(sources)} only puts the layers in another order; it adds none, and its files '
                'would look like those of the unscaled network. Name at least one layer twice.'
            )

    @classmethod
    def build(
        cls,
        depth: int,
        times: float = 2,
        order: str = 'stack',
        layers: str | Iterable[int] = 'all',
        sources: Sequence[int] | None = None,
    ) -> LayerMap:
        """Maps a network of ``depth`` layers to ``times`` the selected layers.

        Args:
            depth: number of layers of the pretrained network (or stage), L.
            times: depth factor n >= 1 of the selected layers; ``times`` x their number must be whole.
            order: ``'stack'`` puts new layers at the tail, cyclically (Eq. 6); ``'interpolate'`` puts each
                beside its source (Eq. 3).
            layers: the layers that are reused, ``'all'`` or 0-based indices (Table III's {1,2,3} is (0, 1, 2)).
            sources: the whole map, spelled out; replaces ``times``, ``order`` and ``layers``.

        Raises:
            ValueError: for values outside these rules; the message names rule, value and way out.

        >>> LayerMap.build(6, layers=(0, 1), order='interpolate').sources
        (0, 0, 1, 1, 2, 3, 4, 5)
        >>> LayerMap.build(6, layers=(0, 1), order='stack').sources
        (0, 1, 2, 3, 4, 5, 0, 1)
        >>> LayerMap.build(4, times=1.5, order='interpolate').sources
        (0, 0, 1, 2, 2, 3)
        """
        if sources is not None:
            built = cls(tuple(sources))
            if built.depth != depth:
                raise ValueError(
                    f'sources names layers up to {built.depth - 1}, but the network has layers 0..{depth - 1}; '
                    'every one of them must appear at least once.'
                )
            return built
        if order not in ORDERS:
            raise ValueError(f'order must be one of {ORDERS}, got {order!r}.')
        chosen = selected(depth, layers)
        total = _whole(times, len(chosen))
        if times == 1 and not isinstance(layers, str):
            raise ValueError(
                f'layers={list(layers)} names what is reused, and times=1 reuses nothing: leave layers out.'
            )
        if order == 'stack':
            extra = [chosen[i % len(chosen)] for i in range(total - len(chosen))]
            return cls((*range(depth), *extra))
        repeats = [0] * len(chosen)
        for i in range(total):
            repeats[i * len(chosen) // total] += 1
        copies = dict(zip(chosen, repeats))
        return cls(tuple(s for s in range(depth) for _ in range(copies.get(s, 1))))

    @property
    def depth(self) -> int:
        """Number of source layers, L."""
        return max(self.sources) + 1

    def __len__(self) -> int:
        """Number of layer instances, L'."""
        return len(self.sources)

    @property
    def owners(self) -> tuple[int, ...]:
        """The first instance of every source layer, in the order of the sources."""
        return tuple(self.sources.index(s) for s in range(self.depth))

    def owner(self, instance: int) -> int:
        """The instance under whose name the tensors of ``instance`` are kept."""
        return self.sources.index(self.sources[instance])

    def instances(self, source: int) -> tuple[int, ...]:
        return tuple(i for i, s in enumerate(self.sources) if s == source)

    def is_reused(self, instance: int) -> bool:
        """Whether this instance shares its tensors with another one."""
        return self.sources.count(self.sources[instance]) > 1

    def live(self, period: int = 1) -> tuple[int, ...]:
        """One instance of each source, in the order of the sources: the pretrained function inside the scaled net.

        Args:
            period: a host whose layers alternate (Swin shifts every second window) needs the instance's position
                to equal its source's modulo ``period``.

        Raises:
            ValueError: if the map holds no such sequence.

        >>> LayerMap.build(4, order='interpolate').live(period=2)
        (0, 3, 4, 7)
        """
        found: list[int] = []
        for source in range(self.depth):
            after = found[-1] if found else -1
            fit = (i for i in self.instances(source) if i > after and (i - source) % period == 0)
            instance = next(fit, None)
            if instance is None:
                raise ValueError(
                    "start='function' needs the source layers to appear in their own order"
                    f'{" and at positions of their own parity" if period > 1 else ""}; in {list(self.sources)} '
                    f"layer {source} does not. Use order='stack' or 'interpolate', or leave start out."
                )
            found.append(instance)
        return tuple(found)

    def __str__(self) -> str:
        """One row of instances with their sources; ``*`` marks instances that reuse another's tensors."""
        width = max(len(str(len(self))), len(str(self.depth))) + 1
        cells = [f'{s}{"*" if self.owner(i) != i else ""}' for i, s in enumerate(self.sources)]
        row = 'instance ' + ' '.join(str(i).rjust(width) for i in range(len(self)))
        return row + '\nsource   ' + ' '.join(c.rjust(width) for c in cells)


def stage_maps(
    depths: Sequence[int],
    times: float | Sequence[float] = 2,
    order: str = 'stack',
    stages: str | Iterable[int] | None = None,
    layers: str | Iterable[int] = 'all',
    sources: Mapping[int, Sequence[int]] | None = None,
    build: Callable[..., LayerMap] = LayerMap.build,
) -> tuple[LayerMap, ...]:
    """One map a stage of a hierarchical network.

    Args:
        depths: layers of each stage of the pretrained network.
        times: one factor for the ``stages`` named, or one for each stage of the network (then ``stages`` is unused).
        stages: the stages that are scaled, ``'all'`` or 0-based indices; by default the last (Sec. IV-A1), or where
            there are ``sources`` none but theirs.
        sources: explicit maps, ``{stage: [source, ...]}``; stages beside them that ``stages`` names follow ``times``.
        build: makes a map of (depth, times, order, layers, sources).

    >>> [len(m) for m in stage_maps((2, 2, 6, 2))]
    [2, 2, 6, 4]
    >>> [len(m) for m in stage_maps((2, 2, 6, 2), times=(1, 1, 2, 3))]
    [2, 2, 12, 6]
    """
    everything = range(len(depths))
    explicit = {} if sources is None else by_stage(sources)
    if not set(explicit) <= set(everything):
        raise ValueError(
            f'sources of a network of stages must be {{stage: [layer, ...]}} with stages of 0..{len(depths) - 1}, got '
            f'{sources}.'
        )
    if isinstance(times, Sequence):
        if len(times) != len(depths):
            raise ValueError(
                f'times as a list needs one factor for each of the {len(depths)} stages, got {list(times)}.'
            )
        factors = list(times)
        scaled = [i for i in everything if factors[i] != 1]
    else:
        last = () if explicit else (len(depths) - 1,)
        scaled = last if stages is None else selected(len(depths), stages, 'stages')
        factors = [times if i in scaled else 1 for i in everything]
    named = [layers if i in scaled else 'all' for i in everything]
    return tuple(build(depths[i], factors[i], order, named[i], explicit.get(i)) for i in everything)


def by_stage(sources: Any) -> dict[Any, Sequence[int]]:
    """Explicit maps by the index or name of their stage; --cfg-options and JSON give an index as a string.

    >>> by_stage({'3': [0, 1, 1]})
    {3: [0, 1, 1]}
    """
    if not isinstance(sources, Mapping):
        return {None: sources}  # one map, of no stage
    return {int(stage) if str(stage).isdecimal() else stage: layer_map for stage, layer_map in sources.items()}


def selected(depth: int, layers: str | int | Iterable[int], name: str = 'layers') -> list[int]:
    """The indices that ``layers`` names, in their order; ValueError for others than 0..depth-1."""
    if isinstance(layers, str):
        if layers != 'all':
            raise ValueError(f"{name} must be 'all' or a list of indices, got {layers!r}.")
        return list(range(depth))
    given: list[Any] = [layers] if isinstance(layers, Integral) else list(layers)
    chosen = sorted(given)
    whole = all(isinstance(i, Integral) for i in chosen)
    if not whole or not chosen or len(set(chosen)) != len(chosen) or chosen[0] < 0 or chosen[-1] >= depth:
        raise ValueError(
            f'{name} must be distinct indices of 0..{depth - 1}, got {given}; '
            f"indices are 0-based (the paper's are 1-based), use 'all' for every one."
        )
    return [int(i) for i in chosen]


def _whole(times: float, layers: int) -> int:
    if not isinstance(times, Real) or isinstance(times, bool) or not 1 <= times < float('inf'):
        raise ValueError(f'times must be a number >= 1, got {times!r}; use 1 to keep the depth.')
    total = times * layers
    if abs(total - round(total)) > 1e-6:
        raise ValueError(
            f'times x the number of layers must be whole, but {times} x {layers} = {float(total):g}; '
            f'the nearest is {round(total)} layers, times={round(total)}/{layers}.'
        )
    return round(total)
