"""The one road from a config and files to a model that holds their weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..compat import built_as_written, init_cfgs, scope_of, with_preprocessor
from .delta_file import apply_delta
from .dialects import CLASSIFIERS, HEADS, classifier_of, head_to_mmpretrain, rewrite
from .reading import add_prefix, dataset_meta, read_checkpoint, strip_prefix, unwrap
from .strict import StrictBackbone, naming, require_values
from .supplied import check_supplied


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as the Runner builds it, before any initialisation."""
    from mmengine.registry import MODELS, init_default_scope
    from mmengine.utils import import_modules_from_strings

    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    init_default_scope(scope_of(cfg) or 'mmengine')
    with built_as_written():
        return MODELS.build(with_preprocessor(cfg.model, cfg))


def load_weights(model: nn.Module, checkpoint: str | Path, delta: str | Path | None = None) -> Mapping[str, Any] | None:
    """Fills a built model from files, by the rule of ``tools/test.py``: every tensor is supplied, or nothing changes.

    Args:
        model: a whole model, or a backbone of ours alone.
        checkpoint: full checkpoint of any dialect, scaled or not: a path, ``http(s)://`` or ``hf://owner/repo/file``;
            with ``delta`` the base it stands on.
        delta: increments, see ``checkpoint.delta_file``.

    Returns:
        The classes and palette that the file (or the delta) carries, if any.

    Raises:
        FileNotFoundError: if a file is not there.
        CheckpointError: if a file does not fit; the message lists the differences.
    """
    if delta is not None:
        load_base(model, checkpoint)
        return apply_delta(model, delta, checkpoint).dataset_meta
    if isinstance(model, StrictBackbone):
        model.load_pretrained(str(checkpoint))
        return None
    content = read_checkpoint(checkpoint)
    with naming(checkpoint):
        fill(model, unwrap(content))
    return dataset_meta(content) or None


def fill(model: nn.Module, state_dict: Mapping[str, Tensor], training: bool = False) -> None:
    """Loads a state dict of any dialect that supplies every tensor of a whole model, or in training what is frozen."""
    from mmengine.runner.checkpoint import load_state_dict

    named = for_model(state_dict, model)
    check_supplied(model, named, training)
    load_state_dict(model, named, logger='silent')


@torch.no_grad()
def load_base(model: nn.Module, base: str | Path) -> None:
    """Loads a base as the Runner loads ``load_from``; what the base does not supply becomes NaN.

    This is the one partial load. Nothing rests on it: an entry that the base lacks equals none of a full checkpoint,
    and no fingerprint, so it comes from a delta or is refused.

    Args:
        base: path, ``http(s)://`` or ``hf://owner/repo/file``, of any dialect, scaled or not.

    Raises:
        CheckpointError: if the backbone does not fit.
    """
    from mmengine.runner.checkpoint import load_state_dict

    with naming(base):
        state = for_model(_from_prefix(unwrap(read_checkpoint(base)), model), model)
        require_values(model.state_dict(), state)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float('nan'))
        load_state_dict(model, state, strict=False, logger='silent')


def _from_prefix(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """The entries that the backbone's ``init_cfg`` takes by a ``prefix``, if the file has some."""
    read = init_cfgs(getattr(model, 'backbone', None))[0]
    prefix = next((cfg['prefix'] for cfg in read if cfg.get('prefix')), 'backbone.')
    if prefix == 'backbone.' or not any(key.startswith(prefix) for key in state_dict):
        return state_dict
    return add_prefix(strip_prefix(state_dict, prefix), 'backbone.')


def for_model(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """A file's entries by the names of the whole model that is to take them; its backbone translates the rest.

    Args:
        state_dict: of a classifier, detector or segmentor, or a bare backbone or classifier of a library; not changed.
    """
    if any(key.startswith('backbone.') for key in state_dict):
        return state_dict
    backbone = getattr(model, 'backbone', None)
    if backbone is None and not model.state_dict().keys().isdisjoint(state_dict):
        return state_dict  # of a model whose backbones lie deeper (a student's, a teacher's)
    own = backbone.own_names(state_dict) if isinstance(backbone, StrictBackbone) else None
    if own is None:
        return rewrite(state_dict, classifier_of(model))
    found = add_prefix(own, 'backbone.')
    heads = OrderedDict((k, v) for k, v in state_dict.items() if HEADS.fullmatch(k))
    found.update(head_to_mmpretrain(heads, classifier_of(model) or CLASSIFIERS['swin']))
    return found
