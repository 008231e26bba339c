"""The studies on the rank task: what scalenet experiment study needs of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ...tables import markdown_table
from . import gradient_curves as gradients
from .claims import CLAIMS, FOLLOW_UP, verdicts
from .evidence_page import VERDICT_HEAD, Records, of_row, page, plot, verdict_lines
from .pool import Job
from .rows import PILOT_SEED, ROWS, STUDIES
from .runs import digest, jobs_of, run

# Holm's correction is within a family.
FAMILIES = {'Fixed before the runs': CLAIMS, 'Added after the results were seen': FOLLOW_UP}
COUNTED = tuple(name for name in STUDIES if name != 'pilot')


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The studies named; ``'all'`` are all but the pilot."""
    unknown = sorted(set(names) - set(STUDIES) - {'all'})
    if unknown:
        raise SystemExit(
            f'{unknown} runs at paper scale only (--scale paper); at demo scale there are {sorted(STUDIES)}.'
        )
    return COUNTED if 'all' in names else tuple(dict.fromkeys(names))


def jobs(studies: Iterable[str], seeds: Iterable[int], shorten: int = 1) -> list[Job]:
    """Their runs; the pilot has a seed of its own, which no other study may use.

    Raises:
        SystemExit: if it would.
    """
    studies, seeds = list(studies), list(seeds)
    if PILOT_SEED in seeds and studies != ['pilot']:
        raise SystemExit(f'Seed {PILOT_SEED} chose the learning rates, so it does not count; use others.')
    if 'pilot' in studies and len(studies) > 1:
        raise SystemExit(f'The pilot has a seed of its own ({PILOT_SEED}); run it by itself.')
    if studies == ['pilot']:
        seeds = [PILOT_SEED]
    rows = dict.fromkeys(key for name in studies for key in STUDIES[name])
    return jobs_of(rows, seeds, shorten)


def digests(shorten: int = 1) -> dict[str, str]:
    """What a record must carry to be of today's rows."""
    return {key: digest(key, shorten) for key in ROWS}


def target(shorten: int):
    """What runs one job, see ``pool.run_all``."""
    return partial(run, shorten=shorten)


def capacity(at_once: int | None) -> tuple[int, int]:
    """Runs at a time and GPUs."""
    import torch

    devices = torch.cuda.device_count()
    cores = len(os.sched_getaffinity(0))
    return at_once or (min(cores, 4 * devices) if devices else cores), devices


def report(studies: Sequence[str], records: Records, root: Path, out: Path, command: str) -> Iterator[Path]:
    """Writes a page and a plot of each study that has a finished run, and the verdicts on all claims; yields the
    files.
    """
    from ..paper.recount import ROWS as PAPER

    printed = {row.key: f'{row.result["top-1"]:.2f}' for row in PAPER if 'top-1' in row.result}
    out.mkdir(parents=True, exist_ok=True)
    for name in studies:
        if name == 'gradients':
            yield from gradients.report(records, root, out, command)
            continue
        rows = STUDIES[name]
        seeds = {PILOT_SEED} if name == 'pilot' else {s for _, s in records} - {PILOT_SEED}
        mine = {(k, s): r for (k, s), r in records.items() if s in seeds}
        if not any(of_row(mine, key, 'top1') for key in rows):
            continue
        plot(mine, rows, out / f'{name}.png', f'{name}: rank task, demo scale')
        (out / f'{name}.md').write_text(page(name, mine, rows, printed, command))
        yield out / f'{name}.md'
    counted = {k: r for k, r in records.items() if k[1] != PILOT_SEED}
    judged = {head: verdicts(counted, claims) for head, claims in FAMILIES.items()}
    tables = [
        f'## {head}\n\n{markdown_table(VERDICT_HEAD, verdict_lines(found))}' for head, found in judged.items() if found
    ]
    if tables:
        begin = f'# Claims, demo scale\n\nMade by `{command}`.'
        (out / 'claims.md').write_text('\n\n'.join([begin, *tables]) + '\n')
        yield out / 'claims.md'
