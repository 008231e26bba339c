"""What starting costs beside the host: importing (pair 'startup'), building and loading (pair 'loading')."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from mmengine.runner import load_checkpoint
from mmpretrain.models.backbones import SwinTransformer, VisionTransformer
from torch import nn

from ...backbones import ScaleNetDeiT, ScaleNetSwin
from ...compat import quiet
from .timing import Spread, interleaved

IMPORT_GOAL = 0.1  # seconds that the package may add to what it imports
LOADING_GOAL = 1.2  # times the host's
# Imported before the package in every process that trains: by mmengine's Runner, and for the hosts' blocks.
HOST = ('mmengine.runner', 'mmpretrain.models')
DETECTOR = ('mmengine.runner', 'mmdet.models')

LOADED = (
    'import json, sys; start = set(sys.modules); import scalenet_mm; '
    'print(json.dumps([m for m in sys.modules if m not in start]))'
)
ROOTS = """
import importlib, json, sys
roots = []
for name in json.loads(sys.argv[1]):
    if name not in sys.modules:
        try:
            importlib.import_module(name)
        except ImportError:  # made at run time, under no file's name
            continue
        roots.append(name)
print(json.dumps(roots))
"""
TIMED = """
import importlib, json, sys, time
start = time.perf_counter()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
there, before = time.perf_counter(), set(sys.modules)
import scalenet_mm
print(json.dumps([there - start, time.perf_counter() - there, [m for m in sys.modules if m not in before]]))
"""


def spread(seconds: Sequence[float]) -> str:
    """Least to greatest."""
    found = Spread.of(seconds)
    return f'{found.low:.3g} to {found.high:.3g} s'


def make_row(
    pair: str, what: str, peer: float, ours: float, goal: float | None, unit: str = 's', note: str = ''
) -> dict:
    """A line of the report: ``ratio`` is ours / peer, to be at most ``goal`` (None: for information)."""
    return dict(pair=pair, what=what, peer=peer, ours=ours, ratio=ours / peer, goal=goal, unit=unit, note=note)


def fresh(script: str, names: list[str] | None = None) -> list:
    """What a script prints last, as JSON, in a process of its own, which may keep compiled bytecode like a user's."""
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script, json.dumps(names or [])], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f'A process that imports {names} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def imported_roots() -> list[str]:
    """The modules whose import, in this order, brings in all that ``import scalenet_mm`` does beside itself."""
    loaded = fresh(LOADED)
    return fresh(ROOTS, [m for m in loaded if m.partition('.')[0] != 'scalenet_mm'])


def own_seconds(names: list[str]) -> tuple[float, float, list[str]]:
    """In a fresh process: seconds to import ``names``, then the package; and the modules of others that the latter
    adds.
    """
    there, own, added = fresh(TIMED, names)
    return there, own, [m for m in added if m.partition('.')[0] != 'scalenet_mm']


def import_rows(quick: bool, rounds: int, progress: Callable[[str], None]) -> list[dict]:
    """``import scalenet_mm`` on top of what a process has imported; the goal speaks of the first state.

    Each trial is a process of its own; ``rounds`` of them count in every state, the first two do not.
    """
    # what is there before -> (modules, whether the goal holds: mmpretrain is missing in a process of mmdet)
    states = {
        'all modules it imports': (imported_roots(), True),
        'mmengine and mmpretrain': (list(HOST), True),
        'mmengine and mmdet': (list(DETECTOR), False),
        'nothing': ([], False),
    }
    states = dict(list(states.items())[: 1 if quick else None])
    found: dict[str, list[tuple[float, float, list[str]]]] = {name: [] for name in states}

    def trial(name: str) -> None:
        found[name].append(own_seconds(states[name][0]))
        there, own, _ = found[name][-1]
        progress(f'import over {name}: {there:.2f} s, then {own:.3f} s')

    interleaved({name: lambda n=name: trial(n) for name in states}, (rounds + 1) // 2, warmup=1)
    rows, alone = [], median(there for there, _, _ in found['all modules it imports'][2:])
    for name, (before, judged) in states.items():
        there, own, added = zip(*found[name][2:])
        peer = median(there) if before else alone
        whole = median(own) + (peer if before else 0.0)
        note = f'own {median(own):.3f} s ({spread(own)})' if before else spread(own)
        if before and added[0]:
            others = sorted({m.partition('.')[0] for m in added[0]} - set(sys.stdlib_module_names))
            note += f', {len(added[0])} modules of others in it: {", ".join(others)}'
        goal = (peer + IMPORT_GOAL) / peer if judged else None
        rows.append(make_row('startup', f'import over {name}', peer, whole, goal, note=note))
    return rows


def loading_cases() -> dict[str, tuple[Callable[[int], nn.Module], int, Callable[[], nn.Module]]]:
    """Name -> (the host at a depth of the scaled layers, that of the pretrained network, ours)."""

    def swin(last: int) -> nn.Module:
        return SwinTransformer(dict(embed_dims=96, depths=[2, 2, 6, last], num_heads=[3, 6, 12, 24]))

    def deit(depth: int) -> nn.Module:
        return VisionTransformer(dict(embed_dims=384, num_layers=depth, num_heads=6, feedforward_channels=1536))

    return {
        'ScaleNetSwin-T x2': (swin, 2, lambda: ScaleNetSwin('tiny')),
        'ScaleNetDeiT-S x2': (deit, 12, lambda: ScaleNetDeiT('deit-small')),
    }


def loading_rows(name: str, rounds: int) -> list[dict]:
    """Building, initialising and loading a file, against the host of the same depth.

    Args:
        name: a key of ``loading_cases``.
    """
    host, depth, ours = loading_cases()[name]
    found = []
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, deep = (str(Path(folder, n)) for n in ('source.pth', 'deep.pth'))
        theirs, mine = host(2 * depth), ours()
        torch.save(host(depth).state_dict(), source)
        torch.save(theirs.state_dict(), deep)
        works = {
            'build': (lambda: host(2 * depth), ours),
            'build and init_weights': (lambda: host(2 * depth).init_weights(), lambda: ours().init_weights()),
            'load a file': (
                lambda: load_checkpoint(theirs, deep, 'cpu', strict=True, logger='silent'),
                lambda: mine.load_pretrained(source),
            ),
        }
        for what, (peer, own) in works.items():
            taken = interleaved({'peer': peer, 'ours': own}, rounds)
            there, here = ([t[side] for t in taken] for side in ('peer', 'ours'))
            found.append(
                make_row(
                    'loading',
                    f'{name}: {what}',
                    median(there),
                    median(here),
                    LOADING_GOAL,
                    note=f'{spread(there)}, ours {spread(here)}',
                )
            )
    return found


def rows(quick: bool = False, rounds: int = 7, progress: Callable[[str], None] = print) -> list[dict]:
    """All rows of start-up, see ``make_row``; ``quick`` leaves out what only informs and the second model."""
    found = import_rows(quick, rounds, progress)
    for name in list(loading_cases())[: 1 if quick else None]:
        progress(f'loading {name}')
        found += loading_rows(name, rounds)
    return found
