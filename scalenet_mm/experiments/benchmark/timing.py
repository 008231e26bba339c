"""The one way in which everything is timed: in turn, forth and back, in one process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]
LEAST = 0.05  # seconds that are timed at once; a shorter run is repeated


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, the least and the largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


def seconds(run: Run, repeats: int, device: str) -> float:
    """Mean seconds of one call of several: by CUDA events on a GPU, else by the clock of the process."""
    if device == 'cuda':
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def on_a_gpu(run: Run, calls: int = 3) -> dict[str, float]:
    """What a call takes of the host and of the GPU, after it was called before: whether it waits for Python.

    Returns:
        Milliseconds until all is launched (``host``), those of all kernels by torch's profiler (``kernels``), and how
        many there are (``launched``).
    """
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    host = time.perf_counter() - begin
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    # an annotation, as an optimizer makes one of its step, spans kernels that are counted by themselves
    on_device = [e for e in profiled.key_averages() if e.device_type is DeviceType.CUDA]
    kernels = [e for e in on_device if not e.is_user_annotation]
    return dict(
        host=1e3 * host / calls,
        kernels=sum(e.self_device_time_total for e in kernels) / 1e3 / calls,
        launched=sum(e.count for e in kernels) / calls,
    )


@contextmanager
def without_collector() -> Iterator[None]:
    """Garbage is collected before and not meanwhile."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleaved(
    runs: Mapping[str, Run],
    rounds: int,
    device: str = 'cpu',
    warmup: int = 2,
    repeats: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> list[dict[str, float]]:
    """Times several runs against each other.

    Args:
        runs: by name. A round calls them in this order and then in the reverse (ABBA), so that a machine that drifts
            slows all of them alike.
        rounds: how many, after ``warmup`` calls of each run.
        repeats: the least number of calls that are timed at once.
        tick: called after each round.

    Returns:
        For each round the seconds of a call by name.
    """
    times = {}
    for name, run in runs.items():
        for _ in range(warmup):
            run()
        times[name] = max(repeats, 1, math.ceil(LEAST / max(seconds(run, 1, device), 1e-6)))
    found = []
    for _ in range(rounds):
        sums = dict.fromkeys(runs, 0.0)
        with without_collector():
            for name in (*runs, *reversed(runs)):
                sums[name] += seconds(runs[name], times[name], device)
        found.append({name: total / 2 for name, total in sums.items()})
        tick()
    return found
