"""Write a DeiT or Swin checkpoint of any dialect as one with OpenMMLab's names.

    scalenet convert SRC DST [--backbone-only] [--ema] [--force]

SRC is a path, http(s):// or hf://owner/repo/file; DST ends in .pth or .safetensors. The result loads
through `load_from` and, with `prefix='backbone.'` or after `--backbone-only`, through `init_cfg`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import read_checkpoint, recognise, rewrite, unwrap
from ..checkpoint.digests import digests, fingerprint
from ..checkpoint.reading import dataset_meta, strip_prefix, with_metadata
from ..checkpoint.strict import naming, require_values
from ..checkpoint.writing import pickled, write_atomically
from ..file_names import file_ending, require_other
from .main import command_parser

SUFFIXES = ('.pth', '.safetensors')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument('source', metavar='SRC')
    parser.add_argument('target', metavar='DST', type=file_ending(*SUFFIXES))
    parser.add_argument('--backbone-only', action='store_true', help='leave heads out, and the prefix `backbone.`')
    parser.add_argument('--ema', action='store_true', help='take the averaged weights where the file has both')
    parser.add_argument('--force', action='store_true', help='replace DST if it is there')
    args = parser.parse_args(argv)
    require_other([args.target], [args.source])
    if args.target.exists() and not args.force:
        parser.error(f'{args.target} is there already; add --force to replace it')
    return args


def convert(
    source: str, backbone_only: bool = False, ema: bool = False
) -> tuple[str, OrderedDict[str, Tensor], dict[str, Any]]:
    """Read and translate a checkpoint; returns its dialect's name, the new state dict and what it says of its data."""
    read = read_checkpoint(source)
    weight = torch.empty(())  # no host has other tensors
    with naming(source):
        state = unwrap(read, prefer_ema=ema)
        dialect = recognise(state).name
        translated = rewrite(state)
        weights = [k for k, t in translated.items() if k.startswith('backbone.') or t.is_floating_point()]
        require_values(dict.fromkeys(weights, weight), translated)
    if backbone_only:
        translated = strip_prefix(translated, 'backbone.')
    return dialect, own_storage(translated), dataset_meta(read)


def own_storage(state_dict: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Contiguous tensors that share no storage: a saved view would carry all it looks into."""
    seen: set[int] = set()
    owned = with_metadata((), state_dict)
    for key, tensor in state_dict.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        owned[key] = tensor.detach() if alone and tensor.is_contiguous() else tensor.detach().clone()
        owned[key] = owned[key].contiguous()
    return owned


def write(
    state_dict: OrderedDict[str, Tensor], target: Path, meta: dict[str, str], dataset: Mapping[str, Any] | None = None
) -> str:
    """Write a file whole or not at all; returns its SHA-256.

    Args:
        dataset: names of the classes and what else the libraries keep of the data.
    """
    if target.suffix == '.safetensors':
        from safetensors.torch import save

        # `_metadata` holds the layer maps of scaled nets; a header takes text only
        header = {**meta, 'contents': fingerprint(digests(state_dict))}
        if dataset:
            header['dataset_meta'] = json.dumps(dataset, default=lambda array: array.tolist())
        data = save(state_dict, {**header, '_metadata': json.dumps(state_dict._metadata)})
    else:
        data = pickled({'meta': {**meta, 'dataset_meta': dict(dataset)} if dataset else meta, 'state_dict': state_dict})
    write_atomically(target, data)
    return hashlib.sha256(data).hexdigest()


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    dialect, state, dataset = convert(args.source, args.backbone_only, args.ema)
    meta = {'converted_from': Path(args.source).name, 'dialect': dialect}
    digest = write(state, args.target, meta, dataset)
    print(f'source    {args.source} ({dialect})')
    print(f'written   {args.target} ({args.target.stat().st_size:,} bytes)')
    print(f'tensors   {len(state):,}, {sum(t.numel() for t in state.values()):,} values')
    print(f'sha256    {digest}')
