"""The live hosts of timm and of Hugging Face as registered backbones; either library is imported when one is built."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoint.pretrained import require_weights
from ..checkpoint.strict import CheckpointError
from ..core.flops import meta_parameters
from .arguments import arguments_of, nearest, unknown
from .library import LiveBackbone

# What lets a timm host take images of other sizes than its own, where its class knows the argument.
ANY_SIZE = dict(dynamic_img_size=True, strict_img_size=False)


@MODELS.register_module()
class ScaleNetTimm(LiveBackbone):
    """A network of timm, scaled: ``dict(type='ScaleNetTimm', model_name='vit_small_patch14_dinov2', img_size=224)``.

    Args:
        model_name: as ``timm.create_model`` takes it.

    The other arguments are those of ``LiveBackbone``; what is left goes to ``timm.create_model``.
    """

    library = 'timm'

    def __init__(self, model_name: str, **kwargs):
        super().__init__(model_name, **kwargs)

    def _arguments(self, img_size, drop_path_rate, in_channels) -> dict[str, Any]:
        size = tuple(img_size) if isinstance(img_size, (list, tuple)) else img_size
        return dict(img_size=size, drop_path_rate=drop_path_rate, in_chans=in_channels)

    def _build(self, name: str, **host) -> nn.Module:
        timm = self._import()
        if ':' not in name and not timm.is_model(name.partition('.')[0]):
            known = timm.list_models()
            raise ValueError(
                f'timm has no model {name!r}; near are {nearest(name, known)} ({len(known)} in all: '
                'timm.list_models()).'
            )
        try:
            taken = inspect.signature(type(self._structure(name, **host))).parameters
            flexible = {k: v for k, v in ANY_SIZE.items() if k in taken}
            net = timm.create_model(name, num_classes=0, **{**flexible, **host})
            vars(net).pop('num_classes', None)  # mmdet's and mmpretrain's checks want that of the data
            return net
        except TypeError as e:
            taken = inspect.signature(type(self._structure(name))).parameters
            told = unknown(host, [*taken, *arguments_of(LiveBackbone)])
            raise ValueError(f'timm cannot build {name!r} with {told or host}: {e}') from e

    def _structure(self, name: str, **host) -> nn.Module:
        """The host without memory for its weights, but where it runs a part of itself while it is built."""
        make = partial(self._import().create_model, name, num_classes=0, **host)
        try:
            with meta_parameters():
                return make()
        except RuntimeError:
            return make()

    def _sizes(self) -> tuple[int, Any]:
        conv = self._embedding()
        patch = conv.stride if conv else getattr(self._patch_embed(), 'patch_size', 1)
        size = getattr(self._patch_embed(), 'img_size', None)
        size = size or self.net.pretrained_cfg['input_size'][1:]
        return patch, size

    def _embedding(self) -> nn.Conv2d | None:
        """Where ``patch_embed`` has one convolution: of a stem of several, and of linear ones, the patch is known."""
        embed = self._patch_embed()
        found = [] if embed is None else [m for m in embed.modules() if isinstance(m, nn.Conv2d)]
        return found[0] if len(found) == 1 else None

    def _patch_embed(self) -> nn.Module | None:
        return next(
            (m.patch_embed for m in self.net.modules() if isinstance(getattr(m, 'patch_embed', None), nn.Module)), None
        )

    def _run(self, x: Tensor) -> None:
        self.net.forward_features(x)

    def _checkpoint_layers(self) -> None:
        self.net.set_grad_checkpointing(True)

    def _converted(self, entries: dict[str, Tensor], scaled: bool) -> dict[str, Tensor]:
        """By timm's own filter of the host's files, which renames, reshapes and resizes."""
        module = inspect.getmodule(type(self.net))
        convert = getattr(module, 'checkpoint_filter_fn', None)
        if convert is None:
            return entries
        known = inspect.signature(convert).parameters
        options = {'adapt_layer_scale': True} if 'adapt_layer_scale' in known else {}
        if scaled:
            like = self.net
        else:
            like = self._structure(**self.source)
        try:
            return dict(convert(dict(entries), like, **options))
        except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as e:
            raise CheckpointError(
                f'timm cannot read this file as one of {self.source["name"]} ({type(e).__name__}: {e}); check that it '
                f'belongs to this model. Its keys begin with {list(entries)[:3]}.'
            ) from e

    def _address(self) -> str:
        cfg = self.net.pretrained_cfg
        hub = cfg.get('hf_hub_id')
        found = (
            cfg.get('file')
            or (hub and f'hf://{hub}/{cfg.get("hf_hub_filename") or "model.safetensors"}')
            or cfg.get('url')
        )
        if not found:
            raise ValueError(
                f'timm has no pretrained weights of {self.source["name"]!r}; leave pretrained out, or name a file: '
                "init_cfg=dict(type='Pretrained', checkpoint=...)."
            )
        return found


@MODELS.register_module()
class ScaleNetHF(LiveBackbone):
    """A vision network of Hugging Face's transformers, scaled: ``dict(type='ScaleNetHF',
    model_name_or_config='facebook/dinov2-small')``.

    Args:
        model_name_or_config: a name on the Hub or a folder, or a config: ``dict(model_type='dinov2', hidden_size=384,
            ...)``.
        run: further arguments of the host's ``forward``, such as ``dict(always_partition=True)`` of Swin.

    The other arguments are those of ``LiveBackbone``; what is left changes the config.
    """

    library = 'transformers'

    def __init__(self, model_name_or_config: str | Mapping[str, Any], *, run: dict | None = None, **kwargs):
        super().__init__(model_name_or_config, **kwargs)
        taken = inspect.signature(self.net.forward).parameters
        any_size = {k: True for k in ('interpolate_pos_encoding',) if k in taken}
        self.run_arguments = {**any_size, **(run or {})}

    def _arguments(self, img_size, drop_path_rate, in_channels) -> dict[str, Any]:
        return dict(image_size=img_size, drop_path_rate=drop_path_rate, num_channels=in_channels)

    def _config(self, name: str | Mapping[str, Any], **changes):
        known = self._import()
        if isinstance(name, str):
            try:
                config = known.AutoConfig.from_pretrained(name)
            except (OSError, ValueError) as e:
                raise ValueError(
                    f'{name!r} is neither a model on the Hugging Face Hub nor a folder with a config.json: {e}'
                ) from e
        else:
            given = dict(name)
            kind = given.pop('model_type', None)
            if kind not in known.CONFIG_MAPPING:
                raise ValueError(
                    f'transformers has no model_type {kind!r}; near are '
                    f'{nearest(str(kind), list(known.CONFIG_MAPPING))}.'
                )
            _require_known(given, known.AutoConfig.for_model(kind))
            config = known.AutoConfig.for_model(kind, **given)
        _require_known(changes, config, *arguments_of(LiveBackbone))
        if hasattr(config, 'use_mask_token'):
            changes['use_mask_token'] = False
        for key, value in changes.items():
            setattr(config, key, value)
        return config

    def _build(self, name: str | Mapping[str, Any], **changes) -> nn.Module:
        config, known = self._config(name, **changes), self._import()
        try:
            kind = known.MODEL_MAPPING[type(config)]
        except KeyError as e:
            raise ValueError(f'transformers has no base model of {type(config).__name__}.') from e
        kind = kind[0] if isinstance(kind, tuple) else kind
        self._options = (
            {'add_pooling_layer': False} if 'add_pooling_layer' in inspect.signature(kind).parameters else {}
        )
        net = known.AutoModel.from_config(config, **self._options).float()
        if any(hasattr(m, 'random_masking') and getattr(m, 'is_mae', True) for m in net.modules()):
            raise ValueError(
                f'{type(net).__name__} drops and shuffles tokens at random, so no map can be made of them. Take the '
                "host without it (model_type='vit' for 'vit_mae'), into which its weights load as well."
            )
        return net

    def _sizes(self) -> tuple[int, Any]:
        config = self.net.config
        return getattr(config, 'patch_size', 1), getattr(config, 'image_size', None)

    def _run(self, x: Tensor) -> None:
        self.net(pixel_values=x, **self.run_arguments)

    def _checkpoint_layers(self) -> None:
        self.net.gradient_checkpointing_enable(dict(use_reentrant=False))

    def _converted(self, entries: dict[str, Tensor], scaled: bool) -> dict[str, Tensor]:
        """By ``from_pretrained``, which knows the names of every release."""
        if scaled:
            return entries
        with meta_parameters():
            require_weights(self._build(**self.source), entries)
        net, told = type(self.net).from_pretrained(
            None,
            config=self._config(**self.source),
            state_dict=dict(entries),
            output_loading_info=True,
            **self._options,
        )
        found = {k: v for k, v in net.state_dict().items() if k not in told['missing_keys']}
        return found | {k: entries[k] for k in told['unexpected_keys'] if k in entries}

    def _address(self) -> str:
        name = self.source['name']
        if not isinstance(name, str):
            raise ValueError(
                'pretrained=True needs the name of a model, and a config was given; name a file with '
                "init_cfg=dict(type='Pretrained', checkpoint=...)."
            )
        where = name if os.path.isdir(name) else f'hf://{name}'
        return f'{where}/model.safetensors'


def _require_known(given: Iterable[str], config, *others: str) -> None:
    """A config takes any key and leaves it alone, so a misspelt one would mean the default."""
    keys = [k.removeprefix('_') for k in vars(config)]  # out_indices is kept as _out_indices
    keys += [*config.attribute_map, 'attn_implementation']
    missing = sorted(set(given) - set(keys))
    if told := unknown(missing, [*keys, *others]) or ', '.join(missing):
        raise ValueError(f'{type(config).__name__} has no {told}.')
