"""What is kept of a run: config, environment, log, delta, and the result beside the paper's. No paths of the
machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...checkpoint.delta_file import beside, read_delta
from ...tables import markdown_table
from ..benchmark.machine import describe
from .instructions import as_dict
from .plan import ROOT, Plan
from .public import other_counts

BUNDLE, STEPS, METRICS, LOG, WORK = 'bundle', 'steps.json', 'metrics.json', 'console.log', 'work'
# an evaluator's metric -> (the paper's name, factor)
METRIC_NAMES = {
    'accuracy/top1': ('top-1', 1),
    'coco/bbox_mAP': ('box AP', 100),
    'coco/bbox_mAP_50': ('box AP50', 100),
    'coco/bbox_mAP_75': ('box AP75', 100),
    'mIoU': ('mIoU', 1),
}


def write_bundle(plan: Plan, folder: Path, checkpoint: Path | None) -> Path:
    """Writes ``folder/bundle``, whole or not at all.

    Args:
        folder: of the run, trained and tested.
        checkpoint: the file that it started from, if it was one.
    """
    made, target = folder / f'{BUNDLE}.unfinished', folder / BUNDLE
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    hide = Hidden(plan, folder, checkpoint)
    result = summary(plan, folder, checkpoint)
    delta = beside(folder / WORK / plan.last)
    if delta.is_file():
        kept = read_delta(delta)
        kept = dataclasses.replace(kept, config=hide(kept.config))
        kept.save(made / delta.name)
        result['delta'] = dict(file=delta.name, bytes=(made / delta.name).stat().st_size)
        result['delta']['sha256'] = sha256(made / delta.name)
    texts = {
        'config.py': plan_config(plan),
        'environment.json': json.dumps(describe('cuda' if torch.cuda.is_available() else 'cpu'), indent=1),
        'result.json': json.dumps(result, indent=1),
        'log.txt': (folder / LOG).read_text(errors='replace'),
        'README.md': readme(plan, result),
    }
    for name, text in texts.items():
        (made / name).write_text(hide(text).rstrip('\n') + '\n')
    os.replace(made, target)
    print(f'Bundle: {target}')
    return target


class Hidden:
    """Puts names in the place of this machine's folders."""

    def __init__(self, plan: Plan, folder: Path, checkpoint: Path | None):
        places = {
            folder: 'RUN',
            ROOT: 'REPOSITORY',
            Path(sys.prefix): 'ENVIRONMENT',
            Path(sys.base_prefix): 'PYTHON',
            Path.cwd(): '.',
            Path.home(): '~',
        }
        if plan.data_root:
            places[Path(plan.data_root)] = f'${plan.data.variable}' if plan.data else 'DATA'
        if checkpoint:
            places[checkpoint.parent] = 'CHECKPOINTS'
        spelt = {str(p): name for path, name in places.items() for p in (path.absolute(), path.resolve())}
        self._names = {path: name for path, name in spelt.items() if path != '/'}
        longest = sorted(self._names, key=len, reverse=True)
        # a whole path: `/root` is not hidden inside of `/opt/root` or `/rootless`
        self._paths = re.compile(rf'(?<![\w.~-])({"|".join(map(re.escape, longest))})(?![\w-])')

    def __call__(self, text: str) -> str:
        return self._paths.sub(lambda found: self._names[found[1]], text)


def plan_config(plan: Plan) -> str:
    """The resolved config, with its seed and what it started from."""
    cfg = plan.cfg.copy()
    cfg.merge_from_dict({'randomness.seed': plan.seed})
    if plan.checkpoint:
        start = plan.checkpoint
        cfg.merge_from_dict({start.key: start.address if start.remote else start.name})
    cfg.pop('work_dir', None)
    return cfg.pretty_text


def summary(plan: Plan, folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    """``result.json``: what was run, measured and expected, and what was not as in the recipe."""
    measured = json.loads((folder / METRICS).read_text())
    metrics = named(measured)
    steps = json.loads((folder / STEPS).read_text())
    told, expected = as_dict(plan), plan.expected
    return dict(
        row=plan.name,
        config=plan.file.removeprefix('configs/'),
        command=told['commands']['all'],
        machine=machine(plan),
        seed=plan.seed,
        metrics={k: round(v, 4) for k, v in metrics.items()},
        paper=expected,
        difference={k: round(metrics[k] - v, 4) for k, v in expected.items() if k in metrics},
        all_metrics=measured,
        parameters=told['parameters'],
        trained=told['trained'],
        gpus=plan.gpus,
        batch=plan.batch,
        training_hours=sum(s['seconds'] for s in steps if s['step'] == 'train') / 3600,
        checkpoint=plan.checkpoint
        and dict(
            address=plan.checkpoint.address if plan.checkpoint.remote else plan.checkpoint.name,
            sha256=sha256(checkpoint) if checkpoint else 'not known',
            sha256_published=plan.checkpoint.digits,
        ),
        deviations=deviations(plan),
        attempts=steps,
    )


def named(metrics: Mapping[str, float]) -> dict[str, float]:
    """An evaluator's metrics under the paper's names; those without one keep theirs."""
    known = {k: METRIC_NAMES[k] for k in metrics if k in METRIC_NAMES}
    if known:
        return {name: factor * metrics[k] for k, (name, factor) in known.items()}
    return {k: v for k, v in metrics.items() if isinstance(v, (int, float))}


def deviations(plan: Plan) -> list[str]:
    """What of a run is not as the recipe says."""
    base = (plan.cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    found = []
    if plan.trains and base and base != plan.batch:
        found.append(f'{plan.batch} images a step, the recipe has {base}')
    if not torch.cuda.is_available():
        found.append('run on the CPU')
    found += [f'option {o.partition("=")[0]}' for o in plan.options] + list(plan.extra)
    if plan.data:
        found += other_counts(plan.data, plan.data_root, plan.trains)
    if plan.checkpoint and not plan.checkpoint.digits:
        found.append('the checkpoint has no published SHA-256 to compare with')
    return found


def machine(plan: Plan) -> str:
    if torch.cuda.is_available():
        return f'{plan.gpus} x {torch.cuda.get_device_name(0)}'
    return f'{plan.gpus} x CPU ({os.cpu_count()} cores)'


def readme(plan: Plan, result: Mapping[str, Any]) -> str:
    """The bundle's own page."""
    paper, found = result['paper'], result['metrics']
    lines = [f'# {plan.name}, seed {plan.seed}', '']
    rows = []
    for name in dict.fromkeys([*found, *paper]):
        difference = result['difference'].get(name)
        cells = (
            name,
            f'{found[name]:.2f}' if name in found else 'not measured',
            str(paper.get(name, '–')),
            '–' if difference is None else f'{difference:+.2f}',
        )
        rows.append(cells)
    start = result['checkpoint']
    lines += [
        markdown_table(('metric', 'here', 'paper', 'difference'), rows),
        '',
        'One run of one seed: a difference says nothing without the spread over seeds.',
        '',
        f'* {result["machine"]}, {result["training_hours"]:.2f} hours of training, {result["batch"]} images a step',
        f'* {result["parameters"]:,} parameters, {result["trained"]:,} of them trained',
        f'* from {start["address"]} (SHA-256 {start["sha256"]})' if start else '* from random weights',
        f'* not as in the recipe: {"; ".join(result["deviations"]) or "nothing"}',
        '',
        'Again:',
        '',
        f'    {result["command"]}',
        '',
        '`config.py`: as resolved. `environment.json`: versions and machine. `log.txt`: training and test as printed. '
        '`result.json`: this page as data.',
    ]
    if delta := result.get('delta'):
        last = ['python', 'tools/test.py', 'config.py', 'CHECKPOINT', '--delta', delta['file']]
        moved = Path(plan.data_root).is_absolute()  # then its place is hidden
        last += ['--cfg-options', 'data_root=FOLDER'] if moved else []
        lines += [
            f'`{delta["file"]}`: what training changed; `{shlex.join(last)}` gives these figures, with the file above '
            f'as CHECKPOINT{" and the folder of the data as FOLDER" if moved else ""}.'
        ]
    return '\n'.join(lines)


def sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
