"""The weights of a file that stores more than weights, for whoever trusts its maker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .reading import PLACES, dataset_meta, unwrap
from .writing import pickled, write_atomically


def write_weights(trusted: str | Path, target: str | Path) -> None:
    """Writes the weights of a pickled model, or of a checkpoint that holds one, to a file that `read_checkpoint` reads.

    Reading ``trusted`` runs whatever its maker put there.

    Raises:
        FileExistsError: if there is a ``target`` already.
        CheckpointError: if no tensors are found.
    """
    if Path(target).exists():
        raise FileExistsError(f'{target} is there already; name another file.')
    stored = torch.load(trusted, map_location='cpu', weights_only=False)
    content = _without_modules(stored)
    if not isinstance(content, Mapping):
        raise TypeError(f'{trusted} holds a {type(content).__name__}: neither a model nor a dict.')
    write_atomically(target, pickled({'meta': _classes(stored), 'state_dict': unwrap(content)}))
    print(f'written {target}')


def _classes(content: Any) -> dict[str, Any]:
    """Names of the classes, as the libraries keep them in ``meta``."""
    classes = dataset_meta(content).get('classes') if isinstance(content, Mapping) else None
    return {'dataset_meta': {'classes': list(map(str, classes))}} if isinstance(classes, (list, tuple)) else {}


def _without_modules(content: Any) -> Any:
    """A model as its state dict, also where it is an entry of a checkpoint."""
    if isinstance(content, nn.Module):
        return content.state_dict()
    if not isinstance(content, Mapping):
        return content
    models = [v for v in content.values() if isinstance(v, nn.Module)]
    if len(models) == 1 and not any(isinstance(content.get(k), (Mapping, nn.Module)) for k in PLACES):
        return models[0].state_dict()
    return {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in content.items()}
