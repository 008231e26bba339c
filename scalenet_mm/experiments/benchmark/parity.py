"""Whether two networks compute the same, forward and backward: without it no speed is told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...ops import deploy

FP32 = 1e-5  # of the largest value of each tensor
BF16 = 2**-7  # of each tensor's norm: two roundings, where the stock network happens to have none
SLACK = 1.5


@dataclass
class Net:
    """A network and how it is compared with another one."""

    model: nn.Module
    head: Callable = lambda output: output  # done to its output, so that both sides give the same
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict  # gradients by the other side's names
    call: Callable | None = None  # stands in for ``model``, such as its compiled form

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.head((self.model if self.call is None else self.call)(images))
        return (output,) if isinstance(output, Tensor) else tuple(output)


def objective(outputs: tuple[Tensor, ...]) -> Tensor:
    """A loss that every output value enters: the mean square of its distance from a fixed wave.

    Squares alone would be all but constant after a norm, with a gradient that is mostly rounding.
    """
    return sum((o.float() - _wave(o.shape, o.device)).square().mean() for o in outputs)


@functools.lru_cache(maxsize=32)
def _wave(shape: torch.Size, device: torch.device) -> Tensor:
    return torch.arange(shape.numel(), device=device).remainder(7.0).view(shape) - 3


def largest(tensor: Tensor) -> Tensor:
    return tensor.abs().max()


@dataclass(frozen=True)
class Parity:
    """The tensors that differ most, each difference over the expected tensor.

    In fp32 by the largest value of both, in half precision by their Euclidean norms.

    Attributes:
        against: what was compared with.
        worst: the gradient that differs most; empty where gradients are not compared.
        bounds: of both differences.
    """

    against: str
    forward: float
    gradient: float = 0.0
    worst: str = ''
    bounds: tuple[float, float] = (FP32, FP32)

    @property
    def holds(self) -> bool:
        forward, gradient = self.bounds
        return self.forward <= forward and self.gradient <= gradient  # False for NaN, too

    @property
    def used(self) -> float:
        """The larger of the two differences, each over its bound."""
        forward, gradient = self.bounds
        return max(self.forward / forward, self.gradient / gradient)

    def __str__(self) -> str:
        forward = f'from {self.against} by {self.forward:.1e} forward (bound {self.bounds[0]:.1e})'
        backward = f', {self.gradient:.1e} in the gradient of {self.worst} (bound {self.bounds[1]:.1e})'
        return forward + backward * bool(self.worst)


def compare(
    against: str,
    net: Net,
    other: Net,
    images: Tensor,
    context: Callable = nullcontext,
    other_context: Callable | None = None,
    size: Callable[[Tensor], Tensor] = largest,
) -> Parity:
    """Outputs, and the gradients of the parameters that both train.

    Args:
        context: of a forward pass of ``net``; ``other_context`` that of ``other``, by default the same.
        size: of a tensor and of a difference.
    """
    got, grads = _gradients(net, images, context)
    expected, others = _gradients(other, images, other_context or context)
    common = sorted(set(grads) & set(others))
    assert common, 'the two networks train no parameter of the same name'
    differences = {name: relative(grads[name], others[name], size) for name in common}
    worst = max(differences, key=lambda name: _nan_last(differences[name]))
    forward = max((relative(a, b, size) for a, b in zip(got, expected, strict=True)), key=_nan_last)
    return Parity(against, forward, differences[worst], worst)


def compare_deployed(
    net: Net, reference: Net, images: Tensor, stock: Net | None = None, size: Callable[[Tensor], Tensor] = largest
) -> Parity:
    """Outputs in inference, deployed, with those of a reference that is stored in fp32.

    Args:
        stock: a network of the dtype that is timed, whose own distance bounds that of ``net``, as in ``compare_half``.
    """
    expected = _deployed(reference, images)

    def apart(one: Net) -> float:
        return max((relative(a, b, size) for a, b in zip(_deployed(one, images), expected, strict=True)), key=_nan_last)

    bound = max(SLACK * apart(stock), BF16) if stock else FP32
    return Parity('the plain reference in inference', apart(net), bounds=(bound, FP32))


def _deployed(net: Net, images: Tensor) -> list[Tensor]:
    net.model.eval()
    deploy(net.model)
    with torch.inference_mode():
        return list(net(images.to(next(net.model.parameters()).dtype)))


def compare_half(net: Net, stock: Net, reference: Net, images: Tensor, context: Callable = nullcontext) -> Parity:
    """In bf16, which rounds small gradients of long sums away: as near to fp32 as the stock network in bf16 is.

    By norms: which single value rounds worst is chance, another one on every CPU. Over 20 drawings of the weights the
    largest value of a gradient was 0.7 to 1.6 times as far off as the stock network's, the norm 0.75 to 1.21 times.

    Args:
        reference: stored in fp32; computes in it.
    """
    norm = torch.linalg.vector_norm
    mine, theirs = (compare('fp32', n, reference, images, context, nullcontext, norm) for n in (net, stock))
    bounds = tuple(max(SLACK * d, BF16) for d in (theirs.forward, theirs.gradient))
    return replace(mine, against="fp32 (bound: 1.5 times the peer's own distance)", bounds=bounds)


def _nan_last(value: float) -> float:
    return value if value == value else float('inf')


def _gradients(net: Net, images: Tensor, context: Callable) -> tuple[list[Tensor], Mapping]:
    net.model.zero_grad()
    stored = next(net.model.parameters()).dtype
    with context():
        outputs = net(images.to(stored))
        loss = objective(outputs)
    loss.backward()
    grads = {n: p.grad for n, p in net.model.named_parameters() if p.grad is not None}
    net.model.zero_grad()
    return [output.detach() for output in outputs], net.rename(grads)


def relative(got: Tensor, expected: Tensor, size: Callable[[Tensor], Tensor] = largest) -> float:
    """The size of the difference over that of the expected tensor; shapes must agree."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    got, expected = got.double(), expected.double()
    return size(got - expected).item() / size(expected).clamp(min=torch.finfo(torch.float32).tiny).item()
