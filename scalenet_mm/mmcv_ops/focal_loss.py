"""Focal losses (arXiv 1708.02002, Eq. 5), one value a sample and class, or a sample."""

import torch
from torch import Tensor


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()


def _weights(target: Tensor, weight: Tensor) -> Tensor | float:
    """The weight (C,) of each sample's class; background, whose number is C, has the last one's."""
    return weight[target.clamp(max=len(weight) - 1)] if weight.numel() else 1.0


def _is_class(input: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Losses of logits (N, C) whose classes are ``target`` (N,), C for background, into ``output`` (N, C)."""
    p = input.sigmoid()
    positive = -alpha * (1 - p).pow(gamma) * _log(p)
    negative = -(1 - alpha) * p.pow(gamma) * _log(1 - p)
    loss = torch.where(_is_class(input, target), positive, negative)
    output.copy_((loss.T * _weights(target, weight)).T)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    p = input.sigmoid()
    positive = -alpha * (1 - p).pow(gamma) * (1 - p - gamma * p * _log(p))
    negative = -(1 - alpha) * p.pow(gamma) * (gamma * (1 - p) * _log(1 - p) - p)
    grad = torch.where(_is_class(input, target), positive, negative)
    grad_input.copy_((grad.T * _weights(target, weight)).T)


def _picked(softmax: Tensor, target: Tensor) -> Tensor:
    return softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Losses of probabilities (N, C) whose classes are ``target`` (N,), none if negative, into ``output`` (N,)."""
    p = _picked(input, target)
    loss = -alpha * (1 - p).pow(gamma) * _log(p)
    output.copy_(torch.where(target >= 0, loss, torch.zeros_like(loss)) * _weights(target.clamp(min=0), weight))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    p = _picked(input, target)
    slope = alpha * (gamma * (1 - p).pow(gamma - 1) * p * _log(p) - (1 - p).pow(gamma))
    buff.copy_(torch.where(target >= 0, slope, torch.zeros_like(slope)) * _weights(target.clamp(min=0), weight))
    grad_input.copy_(buff[:, None] * (_is_class(input, target).to(input.dtype) - input))
