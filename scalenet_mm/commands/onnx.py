"""A classifier, detector or segmentor as one ONNX file, checked in onnxruntime against torch before it is written.

    scalenet onnx CONFIG CKPT OUT.onnx [--delta FILE] [--size H W] [--dynamic] [--fp16 | --int8] [--with-preparation]
        [--no-nms] [--check IMAGE ...] [--backbone]

Input `image`: (B, C, H, W) float32, prepared as the file's metadata says, or with --with-preparation (B, H, W, 3)
uint8, red first; H and W are free with --dynamic. Outputs, in pixels of that image: `scores` of a classifier; `labels`
(B, H, W) of a segmentor; `boxes`, `labels`, `scores` and `masks` of a detector (B = 1); `level_0`, ... with --backbone.
Shared tensors are stored once. `scalenet predict IMAGE --onnx OUT.onnx`, `scalenet test CONFIG OUT.onnx` and
examples/run_onnx.py run it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from ..export.file import write
from ..export.graphs import Backbone, network_of
from ..export.preparation import Preparation, sides_of
from ..export.running import about, pixels_of, prepared
from ..file_names import file_ending
from ..models.inference import find_images, load_model
from .main import command_parser
from .numbers import at_least_one

COMPARED = {'float32': '', 'fp16': ' with the rounded weights', 'int8': ' in float32, before int8'}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    p = command_parser(__doc__)
    p.add_argument('config', metavar='CONFIG')
    p.add_argument('checkpoint', metavar='CKPT')
    p.add_argument('out', metavar='OUT.onnx', type=file_ending('.onnx'))
    p.add_argument('--delta', help='increments on CKPT')
    p.add_argument('--size', nargs=2, type=at_least_one, metavar=('H', 'W'), help='of the prepared images')
    p.add_argument('--dynamic', action='store_true', help='any image size')
    small = p.add_mutually_exclusive_group()
    p.set_defaults(store='float32')
    for store, text in (
        ('fp16', 'store matrices and kernels as half floats'),
        ('int8', 'linear layers in int8, quantized as images come'),
    ):
        small.add_argument(f'--{store}', dest='store', action='store_const', const=store, help=text)
    p.add_argument('--with-preparation', action='store_true', help='mean, deviation and channel order in the graph')
    p.add_argument('--no-nms', action='store_true', help='every candidate above the score, no masks (detectors)')
    p.add_argument('--check', nargs='+', default=[], metavar='IMAGE', help='images to compare on, besides made-up ones')
    p.add_argument('--backbone', action='store_true', help='the backbone alone, with its output levels')
    args = p.parse_args(argv)
    if args.backbone and (args.with_preparation or args.no_nms):
        p.error('--with-preparation and --no-nms are of whole models, so not with --backbone.')
    return args


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    images = find_images(args.check) if args.check else []
    model = load_model(args.config, args.checkpoint, args.delta, device='cpu')
    # refuses before images are read
    network = Backbone(model.backbone) if args.backbone else network_of(model, nms=not args.no_nms)
    metadata = about(model, network)
    preparation = Preparation.of(model.cfg) if args.with_preparation else None
    given = [(pixels_of if preparation else prepared)(model, image) for image in images]
    size = args.size or (sides_of(given[0].shape, args.with_preparation) if given else None)
    done = write(network, args.out, size, args.dynamic, metadata, given, args.store, preparation)
    print(f'written       {args.out} ({args.out.stat().st_size:,} bytes)')
    print(
        f'initializers  {done.initializers}, {done.nbytes:,} bytes; unique tensors of the model {done.unique:,} bytes'
    )
    if args.store != 'float32':
        print(f'stored        {done.stored:,} bytes of them as {args.store}')
    print(f'checked at    {", ".join("x".join(map(str, s)) for s in done.shapes)}')
    print(f'difference    {done.difference:.1e} at most, onnxruntime against torch{COMPARED[args.store]}')
    if args.store == 'int8':
        first = f', the first: {done.beyond[0]}' if done.beyond else ''
        print(f'int8          {len(done.beyond)} of {len(done.shapes)} inputs beyond what float32 may differ{first}')
        command = shlex.join(['scalenet', 'test', str(args.config), str(args.out)])
        print(f'              evaluate it on your data: {command}')
    if done.found is not None:
        more = '' if done.found else ': give some images that hold objects with --check'
        print(f'objects       {done.found} in these images{more}')
