"""Record what a full-size config costs on this machine: memory, images a second, loss, sizes, exact resume.

    scalenet experiment record-run configs/mask_rcnn_scalenet_swin_t_1x.py --iters 300
    scalenet experiment record-run configs/upernet_scalenet_swin_t_40k.py --iters 300

No download: scenes of handwritten digits in the config's own data layout and at its real image sizes, under the real
class names, and a source model of random weights. Losses show that it trains, not how well. Mixed precision on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

import scalenet_mm

from ...backbones.scaled import UNSCALED
from ...checkpoint.reading import read_checkpoint, unwrap
from ...commands.main import command_parser
from ...core.roles import TrainPolicy, count, total
from ..data import make_demo_data

ROOT = Path(__file__).resolve().parents[3]
LAYOUT = {'mmdet': ('coco', 'SCALENET_COCO_ROOT'), 'mmseg': ('ade', 'SCALENET_ADE_ROOT')}
VAL_SCENES = 8


def make_data(cfg: Config, folder: Path, scenes: int, size: int) -> dict[str, str]:
    """Scenes in the layout of the config's data set; returns the environment that points there."""
    layout, variable = LAYOUT[cfg.default_scope]
    made = make_demo_data(folder, [layout], train=scenes, val=VAL_SCENES, size=size, workers=os.cpu_count() or 1)[
        layout
    ]
    if layout == 'coco':
        with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
            kind = registry.get(inner(cfg.val_dataloader.dataset).type)
        name_as(kind.METAINFO['classes'], made)
    return {variable: f'{made}/'}


def inner(dataset: dict) -> dict:
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def name_as(classes: tuple[str, ...], coco: Path) -> None:
    """Gives the digits the first ten class names of the real data set, all of which are listed."""
    for path in (coco / 'annotations').glob('*.json'):
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        path.write_text(json.dumps(content))


def schedule(cfg: Config, iters: int) -> tuple[list[str], str, str]:
    """Options for ``iters`` iterations in two halves, and the names of the two checkpoints."""
    if cfg.train_cfg.get('by_epoch', 'max_epochs' in cfg.train_cfg):
        options = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
        return options, 'epoch_1.pth', 'epoch_2.pth'
    half = iters // 2
    options = [f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={iters}']
    return ([*options, f'default_hooks.checkpoint.interval={half}'], f'iter_{half}.pth', f'iter_{iters}.pth')


def train(args: argparse.Namespace, work_dir: Path, options: list[str], env: dict) -> float:
    """Runs tools/train.py; returns its seconds."""
    begin = time.time()
    command = [sys.executable, ROOT / 'tools' / 'train.py', args.config, '--work-dir', work_dir]
    command += ['--resume'] if (work_dir / 'last_checkpoint').exists() else []
    command += ['--amp'] if torch.cuda.is_available() else []
    log = work_dir / 'console.log'
    work_dir.mkdir(parents=True, exist_ok=True)
    print(f'training, log in {log}', flush=True)
    with log.open('a') as f:
        done = subprocess.run(
            [*map(str, command), '--cfg-options', *options],
            env={**os.environ, **env},
            stdout=f,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise SystemExit(f'{log.read_text()[-3000:]}\nThe training failed; its log is {log}.')
    return time.time() - begin


def difference(a: Path, b: Path) -> float:
    """Largest absolute difference of any tensor; 0 means equal to the bit."""
    mine, theirs = (unwrap(read_checkpoint(p)) for p in (a, b))
    assert mine.keys() == theirs.keys()
    return max(float((mine[k].double() - theirs[k].double()).abs().max()) for k in mine)


def peak_memory(steps: list[dict]) -> int:
    """MB: of the GPU's tensors as logged, else of the largest process."""
    logged = [s['memory'] for s in steps if s.get('memory')]
    return max(logged) if logged else resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10


def machine() -> dict:
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return dict(
        device=f'{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB' if gpu else 'CPU',
        processor=platform.machine(),
        cores=os.cpu_count(),
        python=platform.python_version(),
        torch=torch.__version__,
        scalenet_mm=scalenet_mm.__version__,
    )


def record(args: argparse.Namespace) -> dict:
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.default_scope)
    batch = cfg.train_dataloader.batch_size
    options, middle, last = schedule(cfg, args.iters)
    env = make_data(cfg, args.work_dir / 'data', max(batch * args.iters // 2, batch), args.size)

    source = args.work_dir / 'source.pth'
    torch.manual_seed(0)
    torch.save({'state_dict': scalenet_mm.build(args.config, scale=UNSCALED).state_dict()}, source)
    model = scalenet_mm.build(args.config)
    TrainPolicy.from_cfg(cfg.policy).apply(model)
    counts = total(count(model).values())

    options += [f'load_from={source}', 'default_hooks.logger.interval=1', *args.cfg_options]
    whole, resumed = args.work_dir / 'whole', args.work_dir / 'resumed'
    seconds = train(args, whole, options, env)
    resumed.mkdir(parents=True, exist_ok=True)
    (resumed / 'last_checkpoint').write_text(str(whole / middle))
    train(args, resumed, options, env)

    lines = [json.loads(s) for s in next(whole.glob('*/vis_data/scalars.json')).open()]
    steps = [s for s in lines if 'loss' in s]
    times = sorted(s['time'] for s in steps[len(steps) // 4 :])
    deltas = list(whole.glob('*.delta.safetensors'))
    return dict(
        config=str(Path(args.config).name),
        machine=machine(),
        mixed_precision=torch.cuda.is_available(),
        image_size=args.size,
        batch=batch,
        iterations=len(steps),
        seconds_an_iteration=times[len(times) // 2],
        images_a_second=batch / times[len(times) // 2],
        peak_memory_mb=peak_memory(steps),
        seconds_in_all=seconds,
        parameters=counts.params,
        trained=counts.trainable,
        checkpoint_bytes=(whole / last).stat().st_size,
        delta_bytes=max((d.stat().st_size for d in deltas), default=None),
        resume_difference=difference(whole / last, resumed / last),
        loss=[s['loss'] for s in steps],
    )


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    axes.plot(range(1, len(result['loss']) + 1), result['loss'], color='#d35400')
    axes.set(
        xlabel='iteration',
        ylabel='training loss',
        title=f'{result["config"]} on {result["machine"]["device"]}: {result["images_a_second"]:.2f} images/s',
    )
    axes.grid(alpha=0.3)
    fig.savefig(path, dpi=110)


def main(argv: Sequence[str]) -> None:
    p = command_parser(__doc__)
    p.add_argument('config')
    p.add_argument('--iters', type=int, default=300, help='an even number')
    p.add_argument('--size', type=int, default=640, help='side of the stored scenes in pixels')
    p.add_argument('--work-dir', type=Path)
    p.add_argument('--out', type=Path, default=ROOT / 'docs' / 'results')
    p.add_argument('--cfg-options', nargs='+', default=[], help='passed on to tools/train.py')
    args = p.parse_args(argv)
    if args.iters < 2 or args.iters % 2:
        p.error(f'--iters must be even and at least 2 (two halves), got {args.iters}.')
    name = Path(args.config).stem
    args.work_dir = (args.work_dir or Path('work_dirs') / 'record' / name).resolve()
    if (args.work_dir / 'whole').exists():
        p.error(f'{args.work_dir} holds an earlier record; delete it or choose another --work-dir.')
    args.work_dir.mkdir(parents=True, exist_ok=True)
    result = record(args)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f'run_{name}_{"gpu" if torch.cuda.is_available() else "cpu"}'
    (args.out / f'{stem}.json').write_text(json.dumps(result, indent=1) + '\n')
    draw(result, args.out / f'{stem}.png')
    shown = {k: v for k, v in result.items() if k != 'loss'}
    print(json.dumps(shown, indent=1))
    print(f'wrote {args.out / stem}.json and .png')
