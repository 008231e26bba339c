"""The command line of tools/train.py and tools/test.py, the same as mmdet's."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import find_latest_checkpoint

from .resume import make_resumable


def parser(description: str) -> argparse.ArgumentParser:
    """The options that training and testing share."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument(
        'config',
        help='config file; mmpretrain::, mmdet::, mmseg:: and scalenet_mm:: are understood',
    )
    p.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)'
    )
    p.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that replace those of the config, as key=value; lists as key="[a,b]"',
    )
    p.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    p.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return p


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config and applies the shared options.

    Raises:
        SystemExit: if there is no such file.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    os.environ.setdefault(
        'TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1'
    )  # mmengine falls back to running what a file holds
    if '::' not in args.config and not Path(args.config).is_file():
        near = (
            sorted(p.name for p in Path(args.config).parent.glob('*.py'))
            if Path(args.config).parent.is_dir()
            else []
        )
        raise SystemExit(
            f'There is no config {args.config}. In that folder: {", ".join(near) or "nothing"}.'
        )
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if (
        'policy' in cfg
    ):  # one setting, two places: a child config or --cfg-options may change the one alone
        for place in ('optim_wrapper.paramwise_cfg.policy', 'model_wrapper_cfg.policy'):
            cfg.merge_from_dict({place: dict(_delete_=True, **cfg.policy)})
    name = Path(args.config.rpartition('::')[2]).stem
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    return cfg


def build_runner(cfg: Config) -> Runner:
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def train(argv: list[str] | None = None) -> None:
    """tools/train.py."""
    p = parser('Trains a model; what the optimizer trains is printed at the start.')
    p.add_argument('--amp', action='store_true', help='automatic mixed precision')
    p.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rates to the real batch size',
    )
    p.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='continue from the latest checkpoint of the work dir, or from a given one; exact to the bit on CPU',
    )
    args = p.parse_args(argv)
    cfg = load_config(args)
    make_resumable(cfg)
    if args.amp:
        if not torch.cuda.is_available():
            p.error(
                '--amp needs a GPU: mixed precision on CPU is not supported by the Runner. Leave it out.'
            )
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            p.error(
                '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=...) in the config.'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        found = find_latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else args.resume
        if found:
            cfg.resume, cfg.load_from = True, found
        else:
            print(
                f'--resume: {cfg.work_dir} holds no checkpoint yet, so the run starts from its beginning.'
            )
    build_runner(cfg).train()


def test(argv: list[str] | None = None) -> None:
    """tools/test.py."""
    p = parser('Evaluates a checkpoint.')
    p.add_argument('checkpoint', help='checkpoint file')
    p.add_argument('--out', help='also write the metrics to this JSON file')
    args = p.parse_args(argv)
    cfg = load_config(args)
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        p.error(f'there is no checkpoint {args.checkpoint}.')
    cfg.load_from, cfg.resume = args.checkpoint, False
    metrics = build_runner(cfg).test()
    if args.out:
        Path(args.out).write_text(json.dumps(metrics, indent=1))
