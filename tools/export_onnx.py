"""The backbone of a model as ONNX, checked in onnxruntime against torch before it is written.

    python tools/export_onnx.py CONFIG CKPT OUT.onnx [--delta FILE] [--size H W] [--dynamic]

Input `image`: (B, 3, H, W) float32, prepared as the file's metadata says (mean, std, channel order); B is free, H and W
with --dynamic. Outputs `level_0`, ...: the levels a detector or segmentor reads. A tensor that layers share is stored
once.
Whole detectors and segmentors: use mmdeploy.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import scalenet_mm  # noqa: F401  (registers the backbones, resolves scalenet_mm:: in configs)
from scalenet_mm.checkpoint import CheckpointError
from scalenet_mm.export import export_backbone
from scalenet_mm.inference import load_model


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('config', metavar='CONFIG')
    p.add_argument('checkpoint', metavar='CKPT')
    p.add_argument('out', metavar='OUT.onnx', type=Path)
    p.add_argument('--delta', help='increments on CKPT')
    p.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'), help='of the images')
    p.add_argument('--dynamic', action='store_true', help='any image size')
    args = p.parse_args()
    if args.out.suffix != '.onnx':
        p.error(f'OUT must end in .onnx, got {args.out}')
    return args


def run(args: argparse.Namespace) -> None:
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


def main() -> None:
    try:
        run(parse_args())
    except (CheckpointError, ImportError, OSError, ValueError, RuntimeError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
