"""Key names of every library that stores DeiT or Swin, to mmpretrain's names.

One `Dialect` a library, one engine (`to_host`) for all of them. What no rule knows keeps its name:
the strict check after it lists such keys, and those of scaled files (adapters, gates) are right.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .reading import add_prefix, strip_prefix, with_metadata
from .strict import CheckpointError

Rename = tuple[str, str | Callable[[re.Match[str]], str]]
Change = tuple[str, Callable[[Tensor], Tensor]]

# Buffers that follow from the window and input size: the host computes its own.
DERIVED = re.compile(r'.*\.(attn_mask|relative_position_index|relative_coords)')
HEADS = re.compile(r'(head|heads|head_dist|pre_logits|fc)\..*')  # beside an unprefixed backbone
CLASSIFIERS = {'swin': 'head.fc', 'deit': 'head.layers.head'}  # of mmpretrain's own configs


@dataclass(frozen=True)
class Dialect:
    """The names in which one library stores one host.

    Attributes:
        name: For people.
        host: `'swin'` or `'deit'`.
        where: The library and the releases that write it.
        has: A pattern that some key matches whole.
        lacks: A pattern that no key matches whole.
        renames: Substitutions in each key, all applied in this order. `{last}` stands for the index
            of the last stage.
        changes: For keys (new names) that a pattern matches whole: what is done to the tensor.
        zeros: For each new key: the key whose first axis it has, where the library does without.
    """

    name: str
    host: str
    where: str
    has: str
    lacks: str = r'(?!)'
    renames: tuple[Rename, ...] = ()
    changes: tuple[Change, ...] = ()
    zeros: Mapping[str, str] | None = None

    def fits(self, keys: Iterable[str]) -> bool:
        return _any(self.has, keys) and not _any(self.lacks, keys)


def _unfold_order(tensor: Tensor) -> Tensor:
    """Reorder the last axis of a patch merging from Swin's concatenation to `nn.Unfold`'s.

    Swin concatenates the four neighbours (0,0), (1,0), (0,1), (1,1), channels inside; `nn.Unfold`
    has the channels outside and the neighbours (0,0), (0,1), (1,0), (1,1) inside.
    """
    neighbours = tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]  # (..., 4, C)
    return neighbours.transpose(-1, -2).flatten(-2)  # (..., C * 4)


def _tokens(tensor: Tensor) -> Tensor:
    # (1, C, H, W), as mmdet and mmseg keep it, to (1, H * W, C)
    return tensor.flatten(2).transpose(1, 2).contiguous() if tensor.ndim == 4 else tensor


def _previous_stage(match: re.Match[str]) -> str:
    return f'layers.{int(match[1]) - 1}.downsample.'


_MLP = ((r'\.mlp\.fc1\.', '.ffn.layers.0.0.'), (r'\.mlp\.fc2\.', '.ffn.layers.1.'))
_STEM = ((r'^patch_embed\.proj\.', 'patch_embed.projection.'),)
_SWIN = ((r'^layers\.', 'stages.'), (r'\.attn\.', '.attn.w_msa.'), (r'^norm\.', 'norm{last}.'), *_MLP, *_STEM)
_MERGING = (r'stages\.\d+\.downsample\.(norm|reduction)\.(weight|bias)', _unfold_order)
_POSITION = (r'absolute_pos_embed', _tokens)

DIALECTS = (
    Dialect(
        name='official Swin',
        host='swin',
        where='microsoft/Swin-Transformer (also its detection and segmentation repositories); timm before 0.9',
        has=r'layers\.0\.downsample\.reduction\.weight',
        renames=_SWIN,
        changes=(_MERGING, _POSITION),
    ),
    Dialect(
        name='timm Swin',
        host='swin',
        where='timm from 0.9 on: a stage begins, not ends, with its downsample',
        has=r'layers\.\d+\.blocks\.\d+\.attn\.qkv\.weight',
        lacks=r'layers\.0\.downsample\..*',
        renames=((r'^layers\.(\d+)\.downsample\.', _previous_stage), *_SWIN),
        changes=(_MERGING,),
    ),
    Dialect(
        name='OpenMMLab Swin',
        host='swin',
        where='mmpretrain, mmcls (`norm` for `norm3` and masks in early releases), mmdet >= 2.17, '
        'mmseg >= 0.17, scalenet_mm',
        has=r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.weight',
        renames=((r'^norm\.', 'norm{last}.'),),
        changes=(_POSITION,),
    ),
    Dialect(
        name='official DeiT',
        host='deit',
        where='facebookresearch/deit; timm, all releases (`fc_norm` with global average pooling)',
        has=r'blocks\.\d+\.attn\.qkv\.weight',
        renames=(
            (r'^blocks\.(\d+)\.norm', r'layers.\1.ln'),
            (r'^blocks\.', 'layers.'),
            (r'^norm\.', 'ln1.'),
            (r'^fc_norm\.', 'ln2.'),
            *_MLP,
            *_STEM,
        ),
    ),
    Dialect(
        name='mmpretrain DeiT',
        host='deit',
        where='mmpretrain, mmcls, scalenet_mm',
        has=r'layers\.\d+\.attn\.qkv\.weight',
    ),
    Dialect(
        name='mmseg ViT',
        host='deit',
        where="mmseg's VisionTransformer, on torch.nn.MultiheadAttention",
        has=r'layers\.\d+\.attn\.attn\.in_proj_weight',
        renames=(
            (r'\.attn\.attn\.in_proj_', '.attn.qkv.'),
            (r'\.attn\.attn\.out_proj\.', '.attn.proj.'),
            (r'^ln_pre\.', 'pre_norm.'),
        ),
        zeros={'patch_embed.projection.bias': 'patch_embed.projection.weight'},
    ),
)

REFUSED = (
    (
        r'dist_token|head_dist\..*',
        'it is a distilled DeiT (dist_token), whose position embedding has one more token than the '
        'host; use the checkpoint trained without distillation (deit_*_patch16_224)',
    ),
    (r'.*\.(logit_scale|cpb_mlp\..*)', 'it is a Swin V2, whose attention differs; use a Swin (V1) checkpoint'),
)


def split(state_dict: Mapping[str, Tensor]) -> tuple[OrderedDict[str, Tensor], OrderedDict[str, Tensor]]:
    """Separate the backbone from the rest.

    Args:
        state_dict: With the backbone under `backbone.`, or a bare backbone or classifier.

    Returns:
        The backbone's entries without `backbone.`, and all others as they are.
    """
    if any(key.startswith('backbone.') for key in state_dict):
        rest = with_metadata(((k, v) for k, v in state_dict.items() if not k.startswith('backbone.')), state_dict)
        return strip_prefix(state_dict, 'backbone.'), rest
    rest = with_metadata(((k, v) for k, v in state_dict.items() if HEADS.fullmatch(k)), state_dict)
    return with_metadata(((k, v) for k, v in state_dict.items() if k not in rest), state_dict), rest


def recognise(state_dict: Mapping[str, Tensor]) -> Dialect:
    """The dialect of a state dict, told by the structure of its backbone's keys.

    Raises:
        CheckpointError: If no dialect fits, or the model is one that the hosts cannot hold.
    """
    keys = list(split(state_dict)[0]) + [k for k in state_dict if k.startswith('head_dist.')]
    for pattern, reason in REFUSED:
        if _any(pattern, keys):
            raise CheckpointError(f'this checkpoint cannot be used: {reason}')
    dialect = next((d for d in DIALECTS if d.fits(keys)), None)
    if dialect is None:
        known = '\n'.join(f'  {d.name}: {d.where}' for d in DIALECTS)
        raise CheckpointError(
            f'no known dialect has keys like {", ".join(keys[:5]) or "none"} ({len(keys)} in all); '
            f'known are\n{known}\n'
            'A checkpoint of another library has to be renamed to one of these first.'
        )
    return dialect


def to_host(state_dict: Mapping[str, Tensor], host: str) -> OrderedDict[str, Tensor]:
    """Translate backbone keys of any dialect to those of mmpretrain's backbone.

    Args:
        state_dict: Keys without `backbone.` (see `split`); not changed.
        host: `'swin'` or `'deit'`, the backbone that is to take them.

    Returns:
        mmpretrain's names. Buffers that follow from the window size are left out
        (`relative_position_index`, `attn_mask`); keys that no rule knows keep their name.

    Raises:
        CheckpointError: If the file is of the other host, of no known dialect, or contradicts
            itself.
    """
    hosts = sorted({dialect.host for dialect in DIALECTS})
    assert host in hosts, f'host must be one of {hosts}, got {host!r}'
    dialect = recognise(state_dict)
    if dialect.host != host:
        raise CheckpointError(
            f'this checkpoint holds a {dialect.host} backbone (its keys are those of '
            f'{dialect.name}), but the model has a {host} backbone; name a checkpoint of a {host}'
        )
    last = max((int(m[1]) for k in state_dict if (m := re.match(r'(?:layers|stages)\.(\d+)\.', k))), default=0)
    translated = with_metadata((), state_dict)
    for key, tensor in state_dict.items():
        if DERIVED.fullmatch(key):
            _check_derived(key, tensor)
            continue
        name = key
        for pattern, replacement in dialect.renames:
            name = re.sub(pattern, replacement, name)
        name = name.replace('{last}', str(last))
        if name in translated:
            raise CheckpointError(f'two keys of the checkpoint mean {name}; one of them is {key}')
        change = next((change for pattern, change in dialect.changes if re.fullmatch(pattern, name)), None)
        translated[name] = tensor if change is None else change(tensor)
    for name, like in (dialect.zeros or {}).items():
        # no bias is a bias of zero
        if name not in translated and like in translated:
            translated[name] = translated[like].new_zeros(translated[like].shape[0])
    return translated


def head_to_mmpretrain(state_dict: Mapping[str, Tensor], classifier: str = 'head.fc') -> OrderedDict[str, Tensor]:
    """Rename the linear classifier of official and timm files; other keys stay.

    Args:
        state_dict: What is not backbone: `head.weight` or `head.fc.weight`, and the like.
        classifier: Its name in mmpretrain: `head.fc` in a LinearClsHead, `head.layers.head` in a
            VisionTransformerClsHead.
    """
    new = rf'{classifier}.\2'
    renamed = ((re.sub(r'^head(\.fc)?\.(weight|bias)$', new, k), v) for k, v in state_dict.items())
    return with_metadata(renamed, state_dict)


def classifier_of(model: nn.Module) -> str | None:
    """Where a classifier keeps its linear layer, see `head_to_mmpretrain`; None for other models."""
    keys = model.state_dict().keys()
    return next((name for name in CLASSIFIERS.values() if f'{name}.weight' in keys), None)


def rewrite(state_dict: Mapping[str, Tensor], classifier: str | None = None) -> OrderedDict[str, Tensor]:
    """Translate a whole model: the backbone to the host's names under `backbone.`, and its head.

    Args:
        state_dict: A classifier, detector or segmentor of any dialect, or a bare backbone; not
            changed. What stands beside `backbone.` (neck, heads) is kept as it is.
        classifier: See `head_to_mmpretrain`; by default as in mmpretrain's configs of the host.
    """
    host = recognise(state_dict).host
    backbone, rest = split(state_dict)
    rewritten = add_prefix(to_host(backbone, host), 'backbone.')
    if any(key.startswith('backbone.') for key in state_dict):
        rewritten._metadata = rest._metadata
    else:
        rest = head_to_mmpretrain(rest, classifier or CLASSIFIERS[host])
    rewritten.update(rest)
    return rewritten


def relative_position_index(window: int) -> Tensor:
    """Row of Swin's bias table for each pair of positions in a window, (window^2, window^2)."""
    at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    rows, columns = (at[:, None] - at[None, :] + window - 1).unbind(-1)
    return rows * (2 * window - 1) + columns


def _check_derived(key: str, tensor: Tensor) -> None:
    """Refuse bias tables of another order: their index buffer says what order they have."""
    if not key.endswith('.relative_position_index'):
        return
    expected = relative_position_index(round(tensor.shape[0] ** 0.5))
    if tensor.shape != expected.shape or not torch.equal(tensor.cpu().long(), expected):
        raise CheckpointError(
            f'{key} is not the index of a square window in row order, so the bias tables of this '
            'checkpoint have another order than the host; it cannot be used'
        )


def _any(pattern: str, keys: Iterable[str]) -> bool:
    matches = re.compile(pattern).fullmatch
    return any(matches(key) for key in keys)
