"""Boxes, masks, label maps or classes of images: a picture and a JSON file.

    scalenet predict IMAGE [IMAGE ...] CONFIG CKPT [--delta FILE] [--out FILE.png] [--json FILE]
    scalenet predict IMAGE [IMAGE ...] --onnx FILE.onnx [--out FILE.png] [--json FILE]

IMAGE is a file, a folder or a quoted pattern; CONFIG one of mmpretrain, mmdet or mmseg (ours too); CKPT a file of any
dialect, with --delta the base it stands on. Several images give FILE_1.png, FILE_2.png, ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..export.running import OnnxModel
from ..file_names import a_file, file_ending, require_other
from ..models.inference import SCORE, as_json, as_panel, as_picture, find_images, load_model, predict, read_image
from ..models.side_by_side import Panel, Row, draw_side_by_side
from ..progress import Progress
from .main import command_parser
from .numbers import share


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    p = command_parser(__doc__)
    p.add_argument('words', metavar='IMAGE', nargs='+', help='images, then CONFIG and CKPT unless there is --onnx')
    p.add_argument('--onnx', metavar='FILE.onnx', type=a_file, help='a file that `scalenet onnx` wrote')
    p.add_argument('--delta', help='increments, or a folder or hf://owner/repo that holds them')
    p.add_argument('--out', type=file_ending('.png'), default=Path('work_dirs/predict/result.png'), metavar='FILE.png')
    p.add_argument('--json', type=file_ending('.json'), metavar='FILE', help='by default beside the picture')
    p.add_argument('--score-thr', type=share, default=SCORE, help=f'least score of an object ({SCORE})')
    p.add_argument('--device', help='by default a GPU where there is one')
    args = p.parse_args(argv)
    if args.onnx:
        if args.delta or args.device:
            p.error('--onnx takes neither --delta nor --device: the file holds the increments, and runs on the CPU')
        args.images, args.config = args.words, args.onnx
        return args
    if len(args.words) < 3:
        p.error('give IMAGE [IMAGE ...] CONFIG CKPT, or IMAGE [IMAGE ...] --onnx FILE.onnx')
    *args.images, args.config, args.checkpoint = args.words
    return args


def _require_ours(file: Path) -> None:
    """Raises ValueError if a file that nobody named is there and holds anything but results of this command."""
    try:
        told = json.loads(file.read_text())
        ours = isinstance(told, dict) and all({'label', 'class'} <= set(x) for found in told.values() for x in found)
    except FileNotFoundError:
        return
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise ValueError(
            f'{file}, beside the picture, is not of this command and would be written over; give --json FILE.'
        )


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    images = find_images(args.images)
    outs = [args.out.with_stem(f'{args.out.stem}_{i + 1}') for i in range(len(images))] if images[1:] else [args.out]
    file = args.json or args.out.with_suffix('.json')
    require_other([*outs, file], [*images, args.config])
    if not args.json:
        _require_ours(file)
    model = OnnxModel(args.onnx) if args.onnx else load_model(args.config, args.checkpoint, args.delta, args.device)
    for image in images:
        read_image(model, image)
    classes, told = list(model.dataset_meta['classes']), {}
    with Progress('predicting', len(images), unit='image') as progress:
        for i, (image, out) in enumerate(zip(images, outs), start=1):
            sample = read_image(model, image)
            pixels = as_picture(sample)
            result = predict(model, sample)
            panel = as_panel(result, args.score_thr)
            row = Row(pixels, [Panel(), panel])
            draw_side_by_side([row], [image.name, Path(args.config).stem], out, classes)
            told[str(image)] = as_json(model, result, args.score_thr)
            progress.update(i)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(told, indent=1))
    print(f'Picture: {out}   Results: {file}')
