"""A classifier, detector or segmentor as one ONNX file, checked in onnxruntime against torch before it is written.

    scalenet onnx CONFIG CKPT OUT.onnx [--delta FILE] [--size H W] [--dynamic] [--check IMAGE ...] [--backbone]

Input `image`: (B, C, H, W) float32, prepared as the file's metadata says; H and W are free with --dynamic. Outputs, in
pixels of that image: `scores` of a classifier; `labels` (B, H, W) of a segmentor; `boxes`, `labels`, `scores` and
`masks` of a detector (B = 1); `level_0`, ... with --backbone. Shared tensors are stored once.
`scalenet predict IMAGE --onnx OUT.onnx` and examples/run_onnx.py run it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..export.file import write
from ..export.graphs import Backbone, network_of
from ..export.running import about, prepared
from ..file_names import file_ending
from ..models.inference import find_images, load_model
from .main import command_parser
from .numbers import at_least_one


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    p = command_parser(__doc__)
    p.add_argument('config', metavar='CONFIG')
    p.add_argument('checkpoint', metavar='CKPT')
    p.add_argument('out', metavar='OUT.onnx', type=file_ending('.onnx'))
    p.add_argument('--delta', help='increments on CKPT')
    p.add_argument('--size', nargs=2, type=at_least_one, metavar=('H', 'W'), help='of the prepared images')
    p.add_argument('--dynamic', action='store_true', help='any image size')
    p.add_argument('--check', nargs='+', default=[], metavar='IMAGE', help='images to compare on, besides made-up ones')
    p.add_argument('--backbone', action='store_true', help='the backbone alone, with its output levels')
    return p.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    images = find_images(args.check) if args.check else []
    model = load_model(args.config, args.checkpoint, args.delta, device='cpu')
    metadata = about(model)
    network = Backbone(model.backbone) if args.backbone else network_of(model)  # refuses before images are read
    given = [prepared(model, image) for image in images]
    size = args.size or (given[0].shape[-2:] if given else None)
    done = write(network, args.out, size, args.dynamic, metadata, given)
    print(f'written       {args.out} ({args.out.stat().st_size:,} bytes)')
    print(
        f'initializers  {done.initializers}, {done.nbytes:,} bytes; unique tensors of the model {done.unique:,} bytes'
    )
    print(f'checked at    {", ".join("x".join(map(str, s)) for s in done.shapes)}')
    print(f'difference    {done.difference:.1e} at most, onnxruntime against torch')
    if done.found is not None:
        more = '' if done.found else ': give some images that hold objects with --check'
        print(f'objects       {done.found} in these images{more}')
