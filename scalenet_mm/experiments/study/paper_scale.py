"""The studies on the paper's own data sets: each row's config by scalenet experiment reproduce."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...compat import configs_dir, read_config
from ...tables import markdown_table
from ..paper.plan import wherever
from ..paper.recount import ROWS, Row
from .pool import Job
from .stats import Records, interval

STUDIES: dict[str, list[Row]] = {}  # its rows by table
for _row in ROWS:
    if _row.config:
        STUDIES.setdefault(_row.key.partition('/')[0], []).append(_row)
COMMAND = [sys.executable, '-m', 'scalenet_mm', 'experiment', 'reproduce']
TOLD = '{metrics}, {minutes:.1f} min'


def jobs(
    studies: Mapping[str, Iterable[int]], options: Sequence[str] = (), among: Container[tuple[str, int]] | None = None
) -> list[Job]:
    """One run a config and seed; rows of several tables that share a config share its run.

    Args:
        options: of scalenet experiment reproduce, such as ``--cpu``.
        among: of these (config, seed) alone.
    """
    runs = dict.fromkeys((s, row.config) for study, seeds in studies.items() for s in seeds for row in STUDIES[study])
    in_order = sorted(runs, key=lambda run: run[0])  # seed by seed
    wanted = [(config, seed) for seed, config in in_order if among is None or (config, seed) in among]
    return [Job(config, seed, digest(config, tuple(options)), options) for config, seed in wanted]


@cache
def digest(config: str, options: tuple[str, ...] = ()) -> str:
    """Changes with the config and with the options that it is reproduced with."""
    cfg = read_config(str(configs_dir() / config))
    text = wherever(cfg.pretty_text, cfg.get('data_root', '')) + json.dumps(options)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def train(job: Job, folder: Path, source: None) -> dict[str, Any]:
    """Reproduces the first row of a config; its bundle lies in ``folder``."""
    key = next(row.key for row in ROWS if row.config == job.row)
    there = torch.cuda.device_count()
    gpus = ['--gpus', str(there)] if there and '--gpus' not in job.settings else []
    runs = folder / job.digest  # what a stopped run left there is of the same settings
    command = [*COMMAND, key, '--run', '--seed', str(job.seed), '--out', str(runs)]
    with subprocess.Popen([*command, *gpus, *job.settings]) as process:
        try:
            code = process.wait()
        except BaseException:  # this study is ended: it ends the run, and that its own processes
            process.terminate()
            process.wait()
            raise
    found = sorted(runs.glob('*/bundle/result.json'))
    if code or not found:
        lines = (folder / 'console.log').read_text().strip().splitlines() or ['no output']
        raise RuntimeError(f'scalenet experiment reproduce {key}: {lines[-1]}')
    result = json.loads(found[0].read_text())
    hours, deviations = result.get('training_hours', 0.0), result.get('deviations', [])
    return dict(metrics=result['metrics'], minutes=60 * hours, deviations=deviations)


def report(studies: Sequence[str], records: Records, root: Path, out: Path, command: str) -> Iterator[Path]:
    """Writes one page a study: the paper's figures beside ours; yields the files."""
    out.mkdir(parents=True, exist_ok=True)
    for name in studies:
        lines = []
        for row in STUDIES[name]:
            found = [r for (c, _), r in records.items() if c == row.config and r['status'] == 'done']
            done = [{'hours': r['minutes'] / 60, **r['metrics']} for r in found]
            otherwise = dict.fromkeys(text for r in found for text in r.get('deviations', ()))
            for metric, printed in (row.result or {'top-1': None}).items():
                ours = [m[metric] for m in done if metric in m]
                lines.append(
                    [
                        row.key,
                        row.config,
                        metric,
                        '–' if printed is None else f'{printed:g}',
                        str(interval(ours)) if ours else 'not run',
                        interval(v - printed for v in ours).signed if ours and printed else '–',
                        '; '.join(otherwise) or '–',
                    ]
                )
        head = ('row', 'config', 'metric', 'paper', 'here', 'difference', 'not as in the recipe')
        file = out / f'{name}.md'
        file.write_text(f"# {name}, the paper's scale\n\nMade by `{command}`.\n\n{markdown_table(head, lines)}\n")
        yield file
