"""The studies on the paper's own data sets: each row's config by scalenet experiment reproduce."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import torch

from ...checkpoint.writing import write_atomically
from ...compat import configs_dir, read_config
from ...tables import markdown_table
from ..paper.recount import ROWS, Row
from .evidence_page import Records, signed
from .pool import RECORD, Job
from .stats import interval

PAPER_STUDIES = tuple(dict.fromkeys(row.key.partition('/')[0] for row in ROWS if row.config))
COMMAND = [sys.executable, '-m', 'scalenet_mm', 'experiment', 'reproduce']


def rows_of(study: str) -> list[Row]:
    return [row for row in ROWS if row.config and row.key.startswith(f'{study}/')]


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The studies named."""
    unknown = sorted(set(names) - {*PAPER_STUDIES, 'all'})
    if unknown:
        raise SystemExit(f'{unknown} runs at demo scale only; at paper scale there are {PAPER_STUDIES}.')
    return PAPER_STUDIES if 'all' in names else tuple(dict.fromkeys(names))


def jobs(studies: Iterable[str], seeds: Iterable[int], shorten: int = 1) -> list[Job]:
    """One run a config and seed; rows of several tables that share a config share its run."""
    configs = dict.fromkeys(row.config for study in studies for row in rows_of(study))
    return [Job(c, seed, digest(c), 1) for seed in seeds for c in configs]


def digests(shorten: int = 1) -> dict[str, str]:
    """What a record must carry to be of today's configs."""
    return {row.config: digest(row.config) for row in ROWS if row.config}


@cache
def digest(config: str) -> str:
    text = read_config(str(configs_dir() / config)).pretty_text
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def capacity(at_once: int | None) -> tuple[int, int]:
    """Runs at a time, each on all GPUs, unless told otherwise."""
    return at_once or 1, 0


def target(options: Sequence[str]):
    """What runs one job, see ``pool.run_all``.

    Args:
        options: of scalenet experiment reproduce, such as ``--cpu``.
    """
    return partial(reproduce, options=tuple(options))


def reproduce(
    config: str,
    seed: int,
    digest: str,
    root: Path,
    folder: str,
    source: None,
    device: None,
    options: Sequence[str] = (),
) -> None:
    """Reproduces the first row of a config; its log and bundle lie in ``root/folder``."""
    key = next(row.key for row in ROWS if row.config == config)
    out = root / folder
    out.mkdir(parents=True, exist_ok=True)
    record = dict(row=config, seed=seed, digest=digest)
    command = [*COMMAND, key, '--run', '--seed', str(seed), '--out', str(out)]
    there = torch.cuda.device_count()
    gpus = ['--gpus', str(there)] if there and '--gpus' not in options else []
    with (out / 'console.log').open('w') as log:
        code = subprocess.run([*command, *gpus, *options], stdout=log, stderr=subprocess.STDOUT).returncode
    found = sorted(out.glob('*/bundle/result.json'))
    if code == 0 and found:
        result = json.loads(found[0].read_text())
        main = next(iter(result['metrics'].values()))
        hours = result.get('training_hours', 0.0)
        record |= dict(status='done', top1=main, loss=float('nan'), minutes=60 * hours)
        record |= dict(metrics=result['metrics'])
    else:
        lines = (out / 'console.log').read_text().strip().splitlines() or ['no output']
        record |= dict(status='failed', error=f'scalenet experiment reproduce {key}: {lines[-1]}'[:500])
    write_atomically(out / RECORD, json.dumps(record).encode())


def report(studies: Sequence[str], records: Records, root: Path, out: Path, command: str) -> Iterator[Path]:
    """Writes one page a study: the paper's figures beside ours; yields the files."""
    out.mkdir(parents=True, exist_ok=True)
    for name in studies:
        lines = []
        for row in rows_of(name):
            done = [
                r['metrics'] | {'hours': r['minutes'] / 60}
                for (c, _), r in records.items()
                if c == row.config and r['status'] == 'done'
            ]
            for metric, printed in (row.result or {'top-1': None}).items():
                ours = [m[metric] for m in done if metric in m]
                found = interval(ours) if ours else None
                lines.append(
                    [
                        row.key,
                        row.config,
                        metric,
                        '–' if printed is None else f'{printed:g}',
                        str(found) if found else 'not run',
                        signed(interval([v - printed for v in ours])) if ours and printed else '–',
                    ]
                )
        head = ('row', 'config', 'metric', 'paper', 'here', 'difference')
        file = out / f'{name}.md'
        file.write_text(f"# {name}, the paper's scale\n\nMade by `{command}`.\n\n{markdown_table(head, lines)}\n")
        yield file
