"""The command line of tools/train.py and tools/test.py, the same as mmdet's."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.dist import get_rank
from mmengine.runner.checkpoint import find_latest_checkpoint

from .atomic import make_atomic
from .config import build_runner, draw_predictions, load_config, use_tta, write_deltas
from .dry_run import dry_run
from .launch import prepare
from .preflight import preflight
from .progress import log_to_tensorboard, show_progress
from .resume import make_resumable


def parser(description: str) -> argparse.ArgumentParser:
    """The options that training and testing share."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument('config', help='config file; mmpretrain::, mmdet::, mmseg:: and scalenet_mm:: are understood')
    p.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    p.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that replace those of the config, as key=value; lists as key="[a,b]"; '
        'data_root=FOLDER moves all data sets',
    )
    p.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    p.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument('--no-preflight', action='store_true', help='do not check paths, annotations and classes')
    return p


def parse(p: argparse.ArgumentParser, argv: list[str] | None):
    """The arguments, and the config that they name."""
    try:
        args = p.parse_args(argv)
    except RecursionError:  # how mmengine's parser ends on parentheses
        p.error(
            '--cfg-options takes key=value and no dict(...): write its keys one by one, '
            'model.backbone.scale.growth=stack model.backbone.scale.new_layers=1'
        )
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    # mmengine falls back to running what a file holds
    os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    return args, load_config(args.config, args.work_dir, args.cfg_options, args.launcher)


def train(argv: list[str] | None = None) -> None:
    """tools/train.py."""
    p = parser('Trains a model; what the optimizer trains is printed at the start.')
    p.add_argument('--amp', action='store_true', help='automatic mixed precision')
    p.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rates to the real batch size')
    p.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from the latest checkpoint of the work dir, or from a given one; exact to the bit on CPU',
    )
    p.add_argument(
        '--dry-run',
        action='store_true',
        help='two iterations, one evaluation and one save on eight images; prints memory, hours and disk of the run',
    )
    p.add_argument('--tensorboard', action='store_true', help='also write curves for TensorBoard')
    args, cfg = parse(p, argv)
    if args.amp:
        if not torch.cuda.is_available():
            p.error('--amp needs a GPU: mixed precision on CPU is not supported by the Runner. Leave it out.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            p.error('--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config.')
        cfg.auto_scale_lr.enable = True
    write_deltas(cfg)
    if args.resume:
        if args.dry_run:
            p.error('--dry-run starts anew; leave --resume out.')
        found = find_latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        if found:
            cfg.resume, cfg.load_from = True, found
        else:
            print(f'--resume: {cfg.work_dir} holds no checkpoint yet, so the run starts from its beginning.')
    if not args.no_preflight:
        preflight(cfg)
    make_resumable(cfg)
    make_atomic(cfg)
    if args.tensorboard:
        log_to_tensorboard(cfg)
    prepare(args.launcher, cfg)
    if args.dry_run:
        dry_run(cfg)
        return
    show_progress(cfg)
    build_runner(cfg).train()


def test(argv: list[str] | None = None) -> None:
    """tools/test.py."""
    p = parser('Evaluates a checkpoint.')
    p.add_argument('checkpoint', help='checkpoint file')
    p.add_argument('--out', help='also write the metrics to this JSON file')
    p.add_argument('--show', action='store_true', help='show the predictions in a window')
    p.add_argument('--show-dir', help='draw the predictions into this folder')
    p.add_argument('--wait-time', type=float, default=2, help='seconds between shown pictures')
    p.add_argument('--tta', action='store_true', help="test-time augmentation, the config's own")
    p.add_argument('--delta', help='increments that CHECKPOINT is the base of; file or hf:// address')
    args, cfg = parse(p, argv)
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        p.error(f'there is no checkpoint {args.checkpoint}.')
    cfg.load_from, cfg.resume = args.checkpoint, False
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
    metrics = build_runner(cfg).test()
    if args.out and get_rank() == 0:
        Path(args.out).write_text(json.dumps(metrics, indent=1, default=float))
