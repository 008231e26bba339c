"""Bytes: what a forward pass saves, what a process takes, what training keeps."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass saves for its backward pass and that are of this step.

    Each storage counts once. What two passes save alike is not of the step: parameters, buffers, cached constants, the
    input. (The first pass is still alive during the second, so that no address is used twice.) Tensors that a custom
    function keeps past ``save_for_backward`` are not seen.

    Args:
        forward: gives the loss.
    """
    before, mine = _saved(forward), _saved(forward)
    return sum(s.nbytes() for at, s in mine[1].items() if at not in before[1])


def _saved(forward: Callable[[], Tensor]) -> tuple[Tensor, dict[int, torch.UntypedStorage]]:
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return forward(), storages


def unique_nbytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of tensors, each storage once."""
    storages = (t.untyped_storage() for t in tensors if t is not None)
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that training keeps between two steps: weights, gradients, state of the optimizer."""
    params = list(model.parameters())
    state = (t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))
    return dict(
        weights=unique_nbytes(params), gradients=unique_nbytes(p.grad for p in params), optimizer=unique_nbytes(state)
    )


STATUS = Path('/proc/self/status')


def peak_of_fresh_process(prepare: Callable, *args) -> int | None:
    """Bytes by which the resident memory of a new process grows in the step that ``prepare(*args)`` returns.

    Returns:
        None where the system does not tell.
    """
    if not STATUS.is_file():
        return None
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_grown, prepare, *args).result()


def _grown(prepare: Callable, *args) -> int:
    step = prepare(*args)
    with suppress(OSError):  # begins the peak anew; without it, that of building stands
        Path('/proc/self/clear_refs').write_text('5')
    resident = _resident('VmRSS')
    step()
    return _resident('VmHWM') - resident


def _resident(entry: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f'{entry}:'))
    return 1024 * int(line.split()[1])
