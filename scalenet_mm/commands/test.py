"""Evaluate a checkpoint, or a file of `scalenet onnx`. The options are those of mmdet's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import EMAHook

from ..export.running import OnnxModel
from ..file_names import a_folder, file_ending, require_other
from ..ops import deploy
from ..runner.config import build_runner, draw_predictions, use_tta
from ..runner.launch import prepare
from ..runner.preflight import preflight
from ..runner.progress_hook import show_progress
from .numbers import seconds
from .train import parse, run_parser


def main(argv: Sequence[str]) -> None:
    p = run_parser(__doc__)
    p.add_argument('checkpoint', help='checkpoint file, or MODEL.onnx, which runs on the CPU and holds its weights')
    p.add_argument('--out', type=file_ending('.json'), help='also write the metrics to this JSON file')
    p.add_argument('--show', action='store_true', help='show the predictions in a window')
    p.add_argument('--show-dir', type=a_folder, help='draw the predictions into this folder')
    p.add_argument('--wait-time', type=seconds, default=2, help='seconds between shown pictures')
    p.add_argument('--tta', action='store_true', help="test-time augmentation, the config's own")
    p.add_argument('--delta', help='increments that CHECKPOINT is the base of; file or hf:// address')
    args, cfg = parse(p, argv)
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        p.error(f'there is no checkpoint {args.checkpoint}.')
    if args.out:
        require_other([args.out], [args.config])
    exported = args.checkpoint.endswith('.onnx')
    if exported and (args.delta or args.tta):
        p.error(f'{args.checkpoint} takes neither --delta nor --tta: a file holds its increments and gives results.')
    if exported and any(option.startswith('model.') for option in args.cfg_options or ()):
        p.error(f"{args.checkpoint} is written with its config's `model`; give such options to `scalenet onnx`.")
    cfg.load_from, cfg.resume = None if exported else args.checkpoint, False
    if not args.no_preflight:
        preflight(cfg, ('test',))
    if args.delta:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='ApplyDeltaHook', delta=args.delta)]
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        use_tta(cfg)
    prepare(args.launcher, cfg)
    show_progress(cfg, 'test')
    runner = build_runner(cfg)
    if exported:
        runner.model = OnnxModel(args.checkpoint)
    if not any(isinstance(hook, EMAHook) for hook in runner.hooks):  # it writes into weights that were packed
        deploy(runner.model)
    metrics = runner.test()
    if args.out and get_rank() == 0:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(metrics, indent=1, default=lambda value: value.tolist()))  # numpy's and torch's
