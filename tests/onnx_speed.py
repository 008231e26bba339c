"""Latency at batch 1, peak memory and size of exported files beside torch: python tests/onnx_speed.py [--work-dir DIR]

ScaleNet-Swin-T of the shipped configs with random weights as a classifier, UPerNet and Mask R-CNN, from a prepared
image to results. Each runner has a process of its own with two threads, which are started in turn; the least of the
medians is told. Forty minutes, half of them exports; nothing else should run while it measures. Prints the table of
docs/ship.md and writes --json. `openvino` is measured where it can be imported.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / 'docs' / 'results' / 'onnx_speed_cpu.json'
THREADS, TRIES, LEAST_S = 2, 2, 5.0
OBJECTS_STD = 0.1  # of the classifier's weights: some objects in noise
MODELS = {  # config -> what, (H, W)
    'scalenet_swin_t_100e.py': ('classifier', (224, 224)),
    'upernet_scalenet_swin_t_40k.py': ('UPerNet', (512, 512)),
    'mask_rcnn_scalenet_swin_t_1x.py': ('Mask R-CNN', (800, 1344)),
}
TORCH = {
    'library': "the library's own Swin of equal depth, torch",
    'ours': 'ours, torch',
    'compiled': 'ours, torch, backbone compiled',
}
FILES = {'float32': 'onnxruntime, float32', 'fp16': 'onnxruntime, --fp16', 'int8': 'onnxruntime, --int8'}
OTHER = {'openvino': 'OpenVINO, the float32 file'}


def detector_or_other(config: str, library: bool = False):
    """A model with random weights, of a detector such that noise holds some objects."""
    import torch
    from mmengine.model import revert_sync_batchnorm

    import scalenet_mm  # noqa: F401 - registers the backbones
    from scalenet_mm.checkpoint.loading import build_model
    from scalenet_mm.compat import read_config
    from scalenet_mm.experiments.benchmark.detectors import deep_state, stock_config

    cfg = read_config(ROOT / 'configs' / config)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build_model(cfg)).eval()
    if hasattr(model, 'roi_head'):
        torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight, std=OBJECTS_STD)
    if not library:
        return model
    stock_cfg = stock_config(cfg, [len(m) for m in model.backbone.layer_maps().values()])
    if cfg.default_scope == 'mmpretrain':  # whose Swin has its depths in `arch`
        backbone = stock_cfg.model.backbone
        backbone.arch = dict(embed_dims=96, depths=backbone.pop('depths'), num_heads=[3, 6, 12, 24])
    stock, state = revert_sync_batchnorm(build_model(stock_cfg)).eval(), deep_state(model)
    stock.load_state_dict({k: state[k] for k in stock.state_dict()})
    return stock


def torch_runner(config: str, kind: str) -> tuple[Callable, int]:
    """A call that predicts the image, and the bytes of the model's unique tensors."""
    import torch

    from scalenet_mm.core.roles import unique_bytes
    from scalenet_mm.export.graphs import network_of
    from scalenet_mm.ops import set_ops

    torch.set_num_threads(THREADS)
    network = network_of(detector_or_other(config, kind == 'library'))
    network.traced = None
    model, image = network.model, torch.from_numpy(image_of(config))
    if kind == 'compiled':
        set_ops(model.backbone, dict(compile=True))

    def call():
        with torch.inference_mode():
            return network.reference(image)

    return call, unique_bytes(model)


def file_runner(config: str, kind: str, folder: Path) -> tuple[Callable, int]:
    file = folder / config.replace('.py', f'.{"float32" if kind in OTHER else kind}.onnx')
    image = image_of(config)
    if kind == 'openvino':
        import openvino

        options = dict(INFERENCE_NUM_THREADS=THREADS, INFERENCE_PRECISION_HINT='f32')
        made = openvino.Core().compile_model(str(file), 'CPU', options)
        return lambda: list(made(image).values()), file.stat().st_size
    import onnxruntime  # alone: the process's memory is told

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, THREADS
    session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'image': image}), file.stat().st_size


def image_of(config: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, *MODELS[config][1]), np.float32)


def measure(config: str, kind: str, folder: Path) -> dict[str, float]:
    """In a process of its own: seconds of a call after two, its peak memory, the model's bytes, objects found."""
    call, nbytes = torch_runner(config, kind) if kind in TORCH else file_runner(config, kind, folder)
    found = call()
    call()
    times, begin = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < LEAST_S:
        at = time.perf_counter()
        call()
        times.append(time.perf_counter() - at)
    status = Path('/proc/self/status').read_text()  # getrusage would tell the parent's, where that is larger
    peak = 1024 * int(status.split('VmHWM:')[1].split()[0])
    return dict(seconds=median(times), peak=peak, bytes=nbytes, found=len(found[0]))


def export(config: str, store: str, folder: Path) -> None:
    from scalenet_mm.export import file
    from scalenet_mm.export.graphs import network_of
    from scalenet_mm.export.network import Agreement

    file.CHECKED = 2  # these sizes take a while

    out = folder / config.replace('.py', f'.{store}.onnx')
    if not out.exists():
        network = network_of(detector_or_other(config))
        if (
            'boxes' in network.names
        ):  # of random weights many overlaps are as large as may be; tests compare trained ones
            network.compare = lambda ours, theirs: Agreement(float(abs(len(ours[0]) - len(theirs[0]))))
        done = file.write(network, out, MODELS[config][1], store=store)
        print(config, store, f'difference {done.difference:.1e}, objects {done.found}', *done.beyond[:1], flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work-dir', type=Path, default=Path('work_dirs/onnx_speed'), help='for the files')
    p.add_argument('--json', type=Path, default=RECORD)
    p.add_argument('--export-only', action='store_true')
    p.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    p.add_argument('--cell', nargs=2, help=argparse.SUPPRESS)
    args = p.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if args.cell:
        print(json.dumps(measure(*args.cell, args.work_dir)))
        return
    for config in args.models:
        for store in FILES:
            export(config, store, args.work_dir)
    if args.export_only:
        return
    from scalenet_mm.experiments.benchmark.machine import describe
    from scalenet_mm.tables import markdown_table

    kinds = TORCH | FILES | (OTHER if find_spec('openvino') else {})
    rows, table = [], []
    for config in args.models:
        found: dict[str, list] = {kind: [] for kind in kinds}
        for _ in range(TRIES):
            for kind, cells in found.items():
                command = [sys.executable, __file__, '--work-dir', args.work_dir, '--cell', config, kind]
                env = os.environ | {'OMP_NUM_THREADS': str(THREADS)}
                done = subprocess.run(command, capture_output=True, text=True, env=env)
                if done.returncode:
                    print(config, kind, done.stderr.strip().splitlines()[-1], file=sys.stderr, flush=True)
                    continue
                cells.append(json.loads(done.stdout.splitlines()[-1]))
                print(config, kind, cells[-1], file=sys.stderr, flush=True)
        base = min(c['seconds'] for c in found['library'])
        what, (high, wide) = MODELS[config]
        for kind, cells in found.items():
            if not cells:
                table.append((f'{what}, {high} x {wide}', kinds[kind], 'does not run', '', '', ''))
                continue
            best = min(cells, key=lambda c: c['seconds'])
            rows.append(dict(config=config, runner=kind, **best, all=[c['seconds'] for c in cells]))
            ms = f'{best["seconds"] * 1e3:.{1 if best["seconds"] < 0.1 else 0}f}'
            sizes = (f'{best[key] / 1e6:,.0f}' for key in ('peak', 'bytes'))
            table.append((f'{what}, {high} x {wide}', kinds[kind], ms, f'{best["seconds"] / base:.2f}', *sizes))
        args.json.write_text(json.dumps(dict(machine=describe('cpu'), threads=THREADS, rows=rows), indent=1))
    print(markdown_table(['model, image', 'runner', 'ms', 'of the library', 'peak memory, MB', 'size, MB'], table))


if __name__ == '__main__':
    main()
