"""One-liners for notebooks and scripts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..backbones import ScaleNetDeiT, ScaleNetSwin
from ..backbones.arguments import ArgumentsError, unknown
from ..checkpoint.loading import load_weights
from ..checkpoint.strict import CheckpointError
from ..compat import built_as_written, quiet, read_config, scope_of, type_class, type_name, with_preprocessor

BACKBONES = {'deit': ScaleNetDeiT, 'swin': ScaleNetSwin}
SIZES = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large'}


def build(
    model: str | Path | dict | Config,
    scale: dict | None = None,
    num_classes: int | EllipsisType | None = ...,
    **backbone: Any,
) -> nn.Module:
    """Builds a scaled model with random weights, in eval mode.

    >>> import torch
    >>> deep = build('swin_t', scale=dict(times=2), num_classes=10)
    >>> deep(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 10])

    Args:
        model: ``'deit_t'``, ``'deit_s'``, ``'deit_b'``, ``'swin_t'``, ... (also ``'swin-tiny'``), or a config file or
            dict.
        scale: see ``ScaleNetDeiT`` and ``ScaleNetSwin``; the paper's when left out.
        num_classes: of the classification head, by default the config's own, or 1000; None gives the bare backbone,
            which returns a tuple of features.
        backbone: the backbone's other arguments (``img_size``, ``out_indices``, ``drop_path_rate``, ``with_cp``, ...).

    Raises:
        TypeError: for an argument that neither this function nor the backbone takes, naming the nearest.
        ValueError: for an unknown name, or a number of classes of a config whose model has no ``head.num_classes``.
    """
    if names_config(model):
        return _initialised(_from_config(model, scale, num_classes, backbone))
    host, _, size = str(model).lower().replace('-', '_').partition('_')
    if host not in BACKBONES or not size:
        raise ValueError(
            f'{model!r} names no model; use <host>_<size> with a host of {sorted(BACKBONES)} and a size of '
            f'{sorted(SIZES)} (swin_t, deit_b), or the path of a config.'
        )
    _require_taken(BACKBONES[host], backbone)
    arch = SIZES.get(size, size)
    net = BACKBONES[host](arch if host == 'swin' else f'deit-{arch}', scale=scale, **backbone)
    if num_classes is None:
        return _initialised(net)
    dims = int(net.num_features[-1]) if host == 'swin' else net.embed_dims
    head = dict(type='LinearClsHead' if host == 'swin' else 'VisionTransformerClsHead', in_channels=dims)
    num_classes = 1000 if num_classes is ... else num_classes
    cfg = dict(
        type='mmpretrain.ImageClassifier',
        backbone=net,
        neck=dict(type='GlobalAveragePooling') if host == 'swin' else None,
        head=dict(head, num_classes=num_classes, loss=dict(type='CrossEntropyLoss')),
    )
    init_default_scope('mmpretrain')
    return _initialised(MODELS.build(cfg))


def names_config(model: str | Path | dict | Config) -> bool:
    """Whether this is a config or the name of one, and no short name."""
    if isinstance(model, (dict, Config)):
        return True
    return Path(model).suffix in ('.py', '.json', '.yaml', '.yml') or '::' in str(model)


def load(
    model: str | Path | dict | Config,
    checkpoint: str,
    scale: dict | None = None,
    num_classes: int | EllipsisType | None = ...,
    **backbone: Any,
) -> nn.Module:
    """Builds a scaled model and loads a pretrained checkpoint of any dialect, scaled or not.

    >>> model = load('deit_b', 'deit_base_patch16_224-b5f2ef4d.pth')  # doctest: +SKIP

    Args:
        checkpoint: path, ``http(s)://`` or ``hf://owner/repo/file``; a head of another number of classes must be left
            out with ``num_classes=None`` or trained anew from ``build``.

    The other arguments are those of ``build``.

    Raises:
        CheckpointError: if the file does not fit; the message lists the differences.
    """
    net = build(model, scale, num_classes, **backbone)
    try:
        load_weights(net, checkpoint)
    except CheckpointError as e:
        hint = 'A head of another number of classes: num_classes=None loads the backbone alone.'
        raise CheckpointError(f'{e}\n{hint}', e.differences) from e
    return net


def _require_taken(kind: type | None, backbone: dict[str, Any]) -> None:
    """Refuses what a backbone of ours does not take, before anything is built; other classes do it themselves."""
    taken = getattr(kind, 'arguments_taken', lambda: set(backbone))()
    if told := unknown(backbone, {'scale', 'num_classes', *taken}):
        raise ArgumentsError(f'build() and {kind.__name__} take no argument {told}.')


def _initialised(net: nn.Module) -> nn.Module:
    """Runs ``init_weights``, which also loads what an ``init_cfg`` names, without the log of each tensor's origin."""
    if not any(p.is_meta for p in net.parameters()):
        with quiet('WARNING'):
            net.init_weights()
    net.eval()
    return net


def _from_config(
    model: str | Path | dict | Config, scale: dict | None, num_classes: int | EllipsisType | None, backbone: dict
) -> nn.Module:
    cfg = Config(copy.deepcopy(dict(model))) if isinstance(model, dict) else read_config(model)
    init_default_scope(scope_of(cfg) or 'mmpretrain')
    model_cfg = cfg.get('model', cfg)
    if 'backbone' not in model_cfg:
        parts = [key for key, part in model_cfg.items() if isinstance(part, Mapping) and 'backbone' in part]
        if parts and scale is not None:
            raise ValueError(
                f'The backbone of {type_name(model_cfg)} is in its {parts[0]!r}, and scale is of one at '
                'model.backbone: give a config whose model is that part.'
            )
        model_cfg = dict(backbone=model_cfg)
        num_classes = None
    _require_taken(type_class(model_cfg['backbone'], MODELS), backbone)
    model_cfg['backbone'].update(backbone)
    if scale is not None:
        model_cfg['backbone']['scale'] = scale  # update() would merge it into the config's
    if num_classes is None:
        with built_as_written():
            return MODELS.build(model_cfg['backbone'])
    if num_classes is not ...:
        if 'num_classes' not in (model_cfg.get('head') or {}):
            raise ValueError(
                f'num_classes={num_classes} is of a classification head, and the model of this config has no '
                'head.num_classes; set the classes of its heads in the config (docs/your_data.md).'
            )
        for part in (model_cfg['head'], cfg.get('data_preprocessor') or {}, model_cfg.get('data_preprocessor') or {}):
            if 'num_classes' in part:
                part['num_classes'] = num_classes
    with built_as_written(), quiet('WARNING'):  # its notes would be among the lines of a command's output
        return MODELS.build(with_preprocessor(model_cfg, cfg))
