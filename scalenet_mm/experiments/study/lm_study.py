"""ScaleNet on a small Llama beside its source, the plain deep copy and full fine-tuning: rows, runs, table and
picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import LlamaForCausalLM

from ...core.roles import TrainPolicy
from ...lm.alpaca import IGNORED, encode, pad
from ...lm.training import Recipe, make_trainer
from ...ops import scale
from ...tables import markdown_table
from .lm_data import FAMILIES, MAX_LENGTH, PROMPTS, make_records, make_tokenizer, toy_config
from .pool import Job
from .stats import Records

RANK = 8
ADAPTER = dict(type='ParallelAdapter', rank=RANK)
BATCH = 64
# One rate for the source, one for rows that train everything, one for increments; the last two chosen out of 1e-3 and
# 3e-3, and 3e-3 and 1e-2, by the held-out perplexity of 'source, trained on' and 'ScaleNet' with seed 99, which is not
# reported.
LR = dict(pretrain=3e-3, all=1e-3, increments=1e-2)
STEPS = dict(pretrain=1200, train=200)
RECORDS = dict(train=24_000, held_out=900)
DATA_SEED = 1000  # plus the seed: training records; the held-out ones are the same for all seeds

# name -> how the source is scaled (None: not at all) and what is trained then (None: nothing)
ROWS: dict[str, tuple[dict[str, Any] | None, str | None]] = {
    'source': (None, None),
    'source, trained on': (None, 'all'),
    'source + adapters': (dict(times=1, adjust=ADAPTER), 'increments'),
    'deep copy, untrained': (dict(times=2, adjust=None), None),
    'deep copy, norms trained': (dict(times=2, adjust=None), 'increments'),
    'ScaleNet': (dict(times=2, adjust=ADAPTER), 'increments'),
    'ScaleNet, function start': (dict(times=2, adjust=ADAPTER, start='function'), 'increments'),
    'ScaleNet, all trained': (dict(times=2, adjust=ADAPTER), 'all'),
}
SOURCE, CONTROL = 'source', 'source, trained on'
TOLD = 'perplexity {perplexity:.3f}, exact match {exact:.1f} %'


@torch.no_grad()
def score(model: nn.Module, records: Sequence[Mapping[str, str]], tokenizer: Any) -> dict[str, Any]:
    """Perplexity of the responses' tokens, end token included, and exact match in percent, over all and by family.

    A response matches if the greedy choice is right at each of its tokens, which is when greedy decoding gives it.
    """
    model.eval()
    examples = encode(records, tokenizer, MAX_LENGTH, PROMPTS)
    loss = tokens = 0.0
    right: dict[str, list[bool]] = {f: [] for f in FAMILIES}
    for at in range(0, len(examples), 300):
        batch = pad(examples[at : at + 300], tokenizer.pad_token_id)
        labels = batch.pop('labels')[:, 1:]
        logits, asked = model(**batch).logits[:, :-1], labels != IGNORED
        loss += nn.functional.cross_entropy(logits[asked], labels[asked], reduction='sum').item()
        tokens += asked.sum().item()
        match = ((logits.argmax(-1) == labels) | ~asked).all(1).tolist()
        for record, matched in zip(records[at : at + 300], match):
            right[record['family']].append(matched)
    every = [m for matches in right.values() for m in matches]
    return dict(
        perplexity=float(np.exp(loss / tokens)),
        exact=100 * float(np.mean(every)),
        by_family={f: 100 * float(np.mean(m)) for f, m in right.items()},
    )


def jobs(seeds: Iterable[int], shorten: int = 1) -> list[Job]:
    """All rows, seed by seed; each starts from the seed's source."""
    found = []
    for seed in seeds:
        source = Job(SOURCE, seed, digest(shorten), shorten)
        found += [source, *(Job(row, seed, source.digest, shorten, needs=source) for row in ROWS if row != SOURCE)]
    return found


def digest(shorten: int) -> str:
    """What a record depends on beside row and seed; a record of other settings is not used."""
    return json.dumps([ROWS, LR, STEPS, RECORDS, BATCH, DATA_SEED, shorten], sort_keys=True)


def train(job: Job, folder: Path, source: str | None) -> dict[str, Any]:
    """Trains and scores one row; the source from random weights, the others from the source."""
    seed, (settings, policy) = job.seed, ROWS[job.row]
    tokenizer = make_tokenizer()
    held_out = make_records(RECORDS['held_out'], DATA_SEED - 1)

    def fit(policy: str, steps: int, lr: float, order: int) -> None:
        records = make_records(RECORDS['train'], DATA_SEED + seed, without=held_out)
        examples = encode(records, tokenizer, MAX_LENGTH, PROMPTS)
        steps = max(1, steps // job.settings)
        recipe = Recipe(lr=lr, batch_size=BATCH, micro_batch=BATCH, max_steps=steps, save_steps=None, seed=order)
        make_trainer(model, examples, folder / 'trainer', recipe, TrainPolicy(policy), tokenizer).train()

    torch.manual_seed(seed)
    model = LlamaForCausalLM(toy_config())
    begin = time()
    if source:
        model.load_state_dict(torch.load(source, weights_only=True))
    else:
        fit('all', STEPS['pretrain'], LR['pretrain'], seed)
    torch.manual_seed(seed)
    if settings:
        scale(model, **settings)
    if policy:
        fit(policy, STEPS['train'], LR[policy], 100 + seed)
    torch.save(model.state_dict(), folder / 'model.pt')
    return dict(
        params=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad) if policy else 0,
        seconds=round(time() - begin, 1),
        **score(model, held_out, tokenizer),
        checkpoint=f'{job.folder}/model.pt',
    )


def report(records: Records, out: Path, command: str) -> Iterator[Path]:
    """Writes lm_toy.json, .md and .png of the seeds whose rows are all done; yields them."""
    seeds = [
        s
        for s in sorted({s for _, s in records})
        if all(records.get((row, s), {}).get('status') == 'done' for row in ROWS)
    ]
    runs = [records[row, seed] for seed in seeds for row in ROWS]
    if not runs:
        return
    out.mkdir(parents=True, exist_ok=True)
    lines = summary(runs)
    (out / 'lm_toy.json').write_text(json.dumps(dict(rows=lines, runs=runs), indent=1) + '\n')
    (out / 'lm_toy.md').write_text(as_markdown(lines, command))
    draw(runs, out / 'lm_toy.png')
    yield from (out / f'lm_toy.{kind}' for kind in ('md', 'json', 'png'))


def summary(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) over the seeds of each row, in the rows' order.

    ``change`` is of the perplexity against ``CONTROL`` with the same seed: seeds differ more than rows do.
    """
    control = {r['seed']: r['perplexity'] for r in records if r['row'] == CONTROL}
    lines = []
    for row in dict.fromkeys(r['row'] for r in records):
        mine = [r for r in records if r['row'] == row]
        line = dict(row=row, seeds=len(mine), params=mine[0]['params'], trained=mine[0]['trained'])
        values = {m: [r[m] for r in mine] for m in ('perplexity', 'exact', 'seconds')}
        values['change'] = [r['perplexity'] - control[r['seed']] for r in mine]
        values |= {f: [r['by_family'][f] for r in mine] for f in mine[0]['by_family']}
        for name, of_seeds in values.items():
            sd = float(np.std(of_seeds, ddof=1)) if len(mine) > 1 else None
            line[name] = dict(mean=float(np.mean(of_seeds)), sd=sd)
        lines.append(line)
    return lines


def as_markdown(lines: Sequence[Mapping[str, Any]], command: str) -> str:
    """The table, with what it is of."""

    def cell(value: Mapping[str, Any], digits: int, sign: str = '') -> str:
        sd = '' if value['sd'] is None else f' ± {value["sd"]:.{digits}f}'
        return f'{value["mean"]:{sign}.{digits}f}{sd}'

    seeds = lines[0]['seeds']
    head = ('row', 'params', 'trained', 'perplexity', 'change', 'exact match %', *FAMILIES)
    text = [
        '# ScaleNet on a small Llama',
        '',
        f'Made by `{command}`. Mean ± standard deviation over {seeds} seeds (initialisation, training records, order).',
        '',
        f'Source: 4 layers, 64 wide, {lines[0]["params"]:,} parameters, trained from random weights for '
        f'{STEPS["pretrain"]} steps of {BATCH} records; a further {STEPS["train"]} steps of {BATCH} in every trained '
        f'row (one thread of a CPU). AdamW, cosine, rate {LR["pretrain"]:g} for the source, {LR["all"]:g} where '
        f'everything is trained on, {LR["increments"]:g} for increments (chosen on another seed). Scaled rows: all '
        f'layers x2, interpolated, adapters of rank {RANK} on gate, up and down. Held out: {RECORDS["held_out"]} '
        'records that no training set has. Perplexity of the response tokens; '
        f"change: of the perplexity against '{CONTROL}' with the same seed.",
        '',
    ]
    rows = []
    for line in lines:
        cells = (line['row'], f'{line["params"]:,}', f'{line["trained"]:,}')
        cells += (cell(line['perplexity'], 3), cell(line['change'], 3, '+'), cell(line['exact'], 1))
        cells += tuple(cell(line[f], 0) for f in FAMILIES)
        rows.append(cells)
    return '\n'.join(
        [*text, markdown_table(head, rows), '', '![Perplexity and exact match of each row](lm_toy.png)', '']
    )


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Perplexity against the control, and exact match, of every row: a dot for each seed, a bar at the mean."""
    rows = list(dict.fromkeys(r['row'] for r in records))
    control = {r['seed']: r['perplexity'] for r in records if r['row'] == CONTROL}
    panels = (
        (f"held-out perplexity minus that of '{CONTROL}'", lambda r: r['perplexity'] - control[r['seed']]),
        ('exact match, %', lambda r: r['exact']),
    )
    figure = Figure(figsize=(10, 3.6), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (label, value) in zip(axes, panels):
        for y, row in enumerate(rows):
            values = [value(r) for r in records if r['row'] == row]
            axis.plot(values, [y] * len(values), 'o', color='tab:blue', alpha=0.6)
            axis.plot([np.mean(values)], [y], '|', color='black', markersize=14)
        axis.set_xlabel(label)
        axis.grid(axis='x', alpha=0.3)
    axes[0].set_xscale('symlog', linthresh=0.1)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)
