"""A plan as data and as a text to read, with commands to copy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...checkpoint.fetching import HUB
from .model_index import Counter, image_size
from .plan import ROOT, Checkpoint, Plan

NOT_MEASURED, CHECKPOINTS = 'not measured here', 'checkpoints'


def records(plan: Plan) -> Iterator[str]:
    """Peak memory as docs/results has it, of this config."""
    for path in sorted((ROOT / 'docs' / 'results').glob('run_*.json')):
        known = json.loads(path.read_text())
        if Path(known.get('config', '')).stem == plan.config.stem:
            machine = known['machine']
            yield (
                f'{known["peak_memory_mb"] / 1000:.1f} GB at {known["batch"]} images a process on {machine["device"]} '
                f'({machine["cores"]} cores; docs/results/{path.name})'
            )


def as_dict(plan: Plan) -> dict[str, Any]:
    """All that ``describe`` prints, as plain types."""
    work = f'work_dirs/{plan.slug}'
    checkpoint = plan.checkpoint
    local, fetch = _fetched(checkpoint) if checkpoint else (None, None)
    tested = f'{work}/{plan.last}' if plan.trains else local
    base = (plan.cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    costs = Counter()(plan.cfg)
    return dict(
        row=plan.name,
        config=plan.file,
        seed=plan.seed,
        gpus=plan.gpus,
        batch=plan.batch,
        batch_of_the_recipe=base,
        data=plan.data and asdict(plan.data) | {'folder': plan.data_root},
        checkpoint=checkpoint and dict(key=checkpoint.key, address=checkpoint.address, sha256_begins=checkpoint.digits),
        commands=dict(
            fetch=fetch and shlex.join(fetch),
            check=shlex.join(_again(plan, local, '--check')),
            train=shlex.join(plan.train(work, local)) if plan.trains else None,
            test=shlex.join(plan.test(tested, work, f'{work}/metrics.json')),
            all=shlex.join(_again(plan, plan.given, '--run')),
        ),
        expected=plan.expected,
        parameters_in_the_paper=plan.row.params * 1e6 if plan.row and plan.row.params else None,
        parameters=costs.params,
        trained=costs.trainable if plan.trains else 0,
        flops=costs.flops,
        flops_of=list(image_size(plan.cfg)),
        hours_in_the_paper=plan.hours,
        hours_here=NOT_MEASURED,
        memory=list(records(plan)) or NOT_MEASURED,
    )


def _fetched(checkpoint: Checkpoint) -> tuple[str, list[str] | None]:
    """Where a checkpoint lies once the command beside it, if it needs one, has fetched it."""
    if checkpoint.scheme in ('http', 'https'):
        local = f'{CHECKPOINTS}/{checkpoint.name}'
        return local, ['curl', '-L', '--create-dirs', '-o', local, checkpoint.address]
    if hub := HUB.fullmatch(checkpoint.address):
        at = ['--revision', hub['revision']] if hub['revision'] else []
        command = ['hf', 'download', hub['repo'], hub['path'], *at, '--local-dir', CHECKPOINTS]
        return f'{CHECKPOINTS}/{hub["path"]}', command
    return checkpoint.address, None  # a file, or one that the libraries find themselves


def _again(plan: Plan, checkpoint: str | None, flag: str) -> list[str]:
    """This tool's own command for the same plan."""
    named = plan.row.key if plan.row else plan.file
    parts = ['scalenet', 'experiment', 'reproduce', named, flag, '--gpus', str(plan.gpus)]
    parts += ['--seed', str(plan.seed), *['--cpu'] * plan.cpu]
    parts += [*['--other-data'] * plan.other_data, *plan.extra]
    parts += ['--checkpoint', checkpoint] if checkpoint else []
    return [*parts, '--cfg-options', *plan.options] if plan.options else parts


def describe(plan: Plan) -> str:
    """The plan as a text to read, with commands to copy."""
    told = as_dict(plan)
    commands = told['commands']
    row = plan.row
    head = 'a config of its own'
    if row:
        table = row.table if row.table.startswith('Fig') else f'Table {row.table}'
        head = f'{table}, {row.model}, {row.variant}'
    lines = [f'{plan.name}: {head}', f'   {plan.file}']
    if row:
        said = [*row.note.split('\n'), *row.remark.split('; ')]
        lines += [f'   {text}' for text in said if text]
    lines += ['', '1. Data']
    if plan.data:
        data = plan.data
        where = f'{plan.data_root} (export {data.variable}=FOLDER for another folder)'
        lines += [f'   {data.name} from {data.home}; {data.disk}', f'   in {where}:']
        lines += [f'     {path}: {what}' for path, what in data.layout.items()]
        lines += [f'     {n:,} images in {folder}' for folder, n in data.images.items()]
        lines += ['   fetched by, in that folder:', *(f'     {line}' for line in data.fetch)]
    else:
        lines += [f'   what the config names: {plan.data_root or "no data_root"}']
    lines += ['', '2. Checkpoint']
    if checkpoint := plan.checkpoint:
        digits = checkpoint.digits
        lines += [f'   {checkpoint.address}']
        lines += [
            f'   its SHA-256 begins with {digits} (from its name)'
            if digits
            else '   its publisher gives no SHA-256; the bundle records what was used'
        ]
    else:
        lines += ['   none: trained from random weights']
    lines += ['', '3. Commands']
    lines += [f'   {name:<6}{text}' for name, text in commands.items() if text and name != 'all']
    lines += [f'   or all of it, with a bundle at the end:\n         {commands["all"]}']
    base = told['batch_of_the_recipe']
    odd = f'; the recipe is for {base}, see docs/reproduce.md' if base and base != plan.batch else ''
    lines += [f'   {plan.batch} images a step on {plan.gpus} GPUs{odd}'] if plan.trains else []
    lines += ['', '4. Expected']
    lines += [f'   {name} {value} (paper)' for name, value in plan.expected.items()] or [
        '   the paper prints no figure for this'
    ]
    printed = f'; the paper prints {row.params} M' if row and row.params else ''
    height, width = told['flops_of']
    lines += [
        f'   {told["parameters"]:,} parameters, {told["trained"]:,} of them trained (counted here{printed})',
        f'   {told["flops"] / 1e9:.4g} G multiply-adds at {height} x {width}, adjustments left out',
    ]
    hours = f'{plan.hours} h on 8 GPUs (paper, Table VII); ' if plan.hours else ''
    memory = told['memory'] if isinstance(told['memory'], str) else '; '.join(told['memory'])
    lines += ['', '5. Time and memory', f'   hours: {hours}{NOT_MEASURED}', f'   memory: {memory}']
    lines += [f'   on your machine: python tools/train.py {plan.file} --dry-run'] if plan.trains else []
    return '\n'.join(lines)
