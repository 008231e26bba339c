"""What is computed from tensors that are declared constant, and kept as long as they are. torch only.

Neither ``requires_grad`` nor torch's counter of changes says that a tensor stays as it is: averages of weights, peft's
merged adapters, optimizers with ``fused=True`` and tensors that other ranks send are written without either of them. So
what is kept is of declared tensors alone, which a copy of them is not: those that ``TrainPolicy`` froze, and those of a
network that ``ops.deploy`` was called for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class _Entry:
    """What is kept of one tensor, and whether it is declared constant."""

    __slots__ = ('constant', 'tensor', 'values')

    def __init__(self, tensor: weakref.ref):
        self.tensor, self.values, self.constant = tensor, {}, False


# id of a tensor -> its entry; torch's own weak dictionary takes ten times as long to look up
_kept: dict[int, _Entry] = {}


def _entry(tensor: Tensor) -> _Entry:
    key = id(tensor)
    found = _kept.get(key)
    if found is None or found.tensor() is not tensor:

        def drop(gone: weakref.ref) -> None:
            if key in _kept and _kept[key].tensor is gone:
                del _kept[key]

        found = _kept[key] = _Entry(weakref.ref(tensor, drop))
    return found


def declare_constant(tensor: Tensor, constant: bool = True) -> None:
    """Says that the values of a tensor change no more but by torch's own operations and ``load_state_dict``."""
    _kept.pop(id(tensor), None)
    if constant:
        _entry(tensor).constant = True


def trained(tensor: Tensor) -> bool:
    """Whether it asks for a gradient. A declaration has ended then: it may be written unseen, and be frozen again."""
    if not tensor.requires_grad:
        return False
    found = _kept.get(id(tensor))
    if found is not None and found.constant:
        del _kept[id(tensor)]
    return True


def is_constant(tensor: Tensor) -> bool:
    """Whether it was declared so and has asked for no gradient since."""
    if trained(tensor):
        return False
    found = _kept.get(id(tensor))
    return found is not None and found.constant and found.tensor() is tensor


def kept(what: Hashable, of: tuple[Tensor, ...], make: Callable[[], Tensor]) -> Tensor:
    """``make()`` of some tensors, kept as long as the last of them and until one is another or its values change.

    Changes are seen by torch's counter and the address, so not those through ``.data``: call it for constants.
    """
    state = []
    for t in of:
        if t.is_inference():
            return make()
        state.append((t._version, t.data_ptr(), t.device))
    values = _entry(of[-1]).values
    found = values.get(what)
    if found is None or found[0] != state or any(ref() is not t for ref, t in zip(found[1], of)):
        if of[-1].is_cuda and torch.cuda.is_current_stream_capturing():
            return make()  # else it would lie in the memory of a CUDA graph
        with torch.inference_mode(False):
            found = values[what] = state, [weakref.ref(t) for t in of], make()
    return found[2]
