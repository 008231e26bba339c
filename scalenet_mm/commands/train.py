"""Train a model of any config; what the optimizer trains is printed at the start. The options are those of mmdet's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch
from mmengine.device import get_device

from ..compat import type_name
from ..file_names import a_folder
from ..one_run import is_first, one_run
from ..runner.atomic import make_atomic
from ..runner.config import build_runner, load_config, write_deltas
from ..runner.continuing import settle
from ..runner.dry_run import dry_run
from ..runner.launch import prepare
from ..runner.preflight import preflight
from ..runner.progress_hook import log_to_tensorboard, show_progress
from .cfg_options import CfgOptions
from .main import command_parser


def run_parser(doc: str) -> argparse.ArgumentParser:
    """The options that training and testing share."""
    p = command_parser(doc)
    p.add_argument('config', help='config file; mmpretrain::, mmdet::, mmseg:: and scalenet_mm:: are understood')
    p.add_argument('--work-dir', type=a_folder, help='for logs and checkpoints (default: work_dirs/<config name>)')
    p.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        help='settings that replace those of the config, as key=value; lists as key="[a,b]"; '
        'data_root=FOLDER moves all data sets',
    )
    p.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    p.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument('--no-preflight', action='store_true', help='do not check paths, annotations and classes')
    return p


def parse(p: argparse.ArgumentParser, argv: Sequence[str]):
    """The arguments, and the config that they name."""
    args = p.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args, load_config(args.config, args.work_dir and str(args.work_dir), args.cfg_options, args.launcher)


def main(argv: Sequence[str]) -> None:
    p = run_parser(__doc__)
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
    elif type_name(cfg.get('optim_wrapper') or {}) == 'AmpOptimWrapper' and get_device() == 'cpu':
        p.error(
            "optim_wrapper.type='AmpOptimWrapper' needs a GPU: mixed precision on CPU is not supported by the Runner. "
            'Take that and loss_scale out of the config.'
        )
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            p.error('--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config.')
        cfg.auto_scale_lr.enable = True
    if args.resume and args.dry_run:
        p.error('--dry-run starts anew; leave --resume out.')
    base = cfg.get('load_from')
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
        settle(cfg)
        if not cfg.resume:
            cfg.load_from = base
            if is_first():
                print(f'--resume: {cfg.work_dir} holds no checkpoint yet, so the run starts from its beginning.')
    write_deltas(cfg, base)
    if not args.no_preflight:
        preflight(cfg)
    make_atomic(cfg)
    if args.tensorboard:
        log_to_tensorboard(cfg)
    if args.dry_run:
        prepare(args.launcher, cfg)
        dry_run(cfg)
        return
    with one_run(cfg.work_dir):  # before the model is built; what is only refused has left no folder
        prepare(args.launcher, cfg)
        show_progress(cfg)
        build_runner(cfg).train()
