"""The backbone of a model as ONNX, checked in onnxruntime against torch before it is written.

    scalenet onnx CONFIG CKPT OUT.onnx [--delta FILE] [--size H W] [--dynamic]

Input `image`: (B, C, H, W) float32, prepared as the file's metadata says (mean, std, channel order); B is free, H and W
with --dynamic. Outputs `level_0`, ...: the levels a detector or segmentor reads. Shared tensors are stored once.
Whole detectors and segmentors: use mmdeploy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..file_names import file_ending
from ..models.inference import load_model
from ..models.onnx_export import export_backbone
from .main import command_parser
from .numbers import at_least_one


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    p = command_parser(__doc__)
    p.add_argument('config', metavar='CONFIG')
    p.add_argument('checkpoint', metavar='CKPT')
    p.add_argument('out', metavar='OUT.onnx', type=file_ending('.onnx'))
    p.add_argument('--delta', help='increments on CKPT')
    p.add_argument('--size', nargs=2, type=at_least_one, metavar=('H', 'W'), help='of the images')
    p.add_argument('--dynamic', action='store_true', help='any image size')
    return p.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    model = load_model(args.config, args.checkpoint, args.delta, device='cpu')
    preparation = model.cfg.get('data_preprocessor') or model.cfg.model.get('data_preprocessor') or {}
    metadata = {k: json.dumps(preparation[k]) for k in ('mean', 'std', 'bgr_to_rgb', 'to_rgb') if k in preparation}
    done = export_backbone(model.backbone, args.out, args.size, args.dynamic, metadata)
    print(f'written       {args.out} ({args.out.stat().st_size:,} bytes)')
    print(
        f'initializers  {done.initializers}, {done.nbytes:,} bytes; unique tensors of the backbone {done.unique:,} '
        'bytes'
    )
    print(f'checked at    {", ".join("x".join(map(str, s)) for s in done.shapes)}')
    print(f'difference    {done.difference:.1e} at most, onnxruntime against torch')
