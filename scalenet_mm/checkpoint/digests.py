"""SHA-256 of tensors: what deltas stand on, and whether a file's tensors are those that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The SHA-256 (hex) of each tensor with its name, type and shape, in sorted order of the names."""
    return {name: _digest(name, tensors[name]) for name in sorted(tensors)}


def fingerprint(digests: Mapping[str, str]) -> str:
    """One SHA-256 (hex) of the tensors that ``digests`` stands for, in sorted order of their names."""
    return hashlib.sha256(''.join(digests[name] for name in sorted(digests)).encode()).hexdigest()


def _digest(name: str, tensor: Tensor) -> str:
    found = hashlib.sha256(f'{name} {tensor.dtype} {tuple(tensor.shape)} '.encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()
