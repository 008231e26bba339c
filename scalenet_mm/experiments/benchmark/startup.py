"""What starting costs beside the host (pair 'startup'): importing, building and loading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from mmengine.runner import load_checkpoint
from mmpretrain.models.backbones import SwinTransformer, VisionTransformer
from torch import nn

from ...backbones import ScaleNetDeiT, ScaleNetSwin
from ...compat import quiet
from .cases import Case, Figure, Timed
from .settings import Settings
from .timing import Spread

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
for name in json.load(sys.stdin):
    if name not in sys.modules:
        try:
            importlib.import_module(name)
        except ImportError:  # made at run time, under no file's name
            continue
        roots.append(name)
print(json.dumps(roots))
"""
TIMED = """
import gc, importlib, json, sys, time
gc.disable()  # a collection of what the hosts hold takes 0.25 s, and falls into our import or beside it
start = time.perf_counter()
for name in json.load(sys.stdin):
    importlib.import_module(name)
there, before = time.perf_counter(), set(sys.modules)
import scalenet_mm
print(json.dumps([there - start, time.perf_counter() - there, [m for m in sys.modules if m not in before]]))
"""


def fresh(script: str, names: list[str] | None = None) -> list:
    """What a script prints last, as JSON, in a process of its own, which may keep compiled bytecode like a user's."""
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    command = [sys.executable, '-W', 'ignore', '-c', script]
    done = subprocess.run(command, env=env, input=json.dumps(names or []), capture_output=True, text=True)
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


def importing(s: Settings) -> list[Figure]:
    """``import scalenet_mm`` on top of what a process has imported, over that import.

    Each trial is a process of its own; the first two in every state do not count.
    """
    # what is there before -> (modules, whether the goal holds: mmpretrain is missing in a process of mmdet)
    states = {
        'all modules it imports': (imported_roots(), True),
        'mmengine and mmpretrain': (list(HOST), True),
        'mmengine and mmdet': (list(DETECTOR), False),
        'nothing': ([], False),
    }
    states = dict(list(states.items())[: None if s.size == 'full' else 1])
    found: dict[str, list[tuple[float, float, list[str]]]] = {name: [] for name in states}
    for name in (*states, *reversed(states)) * (1 + (s.rounds + 1) // 2):
        found[name].append(own_seconds(states[name][0]))
    figures, alone = [], median(there for there, _, _ in found['all modules it imports'][2:])
    for name, (before, judged) in states.items():
        there, own, added = zip(*found[name][2:])
        peer, spread = median(there) if before else alone, Spread.of(own)
        ours = spread.median + (peer if before else 0.0)
        others = ', '.join(sorted({m.partition('.')[0] for m in added[0]} - set(sys.stdlib_module_names)))
        note = f'{ours:.3g} against {peer:.3g} s, own {spread.low:.3g} to {spread.high:.3g} s'
        note += f', {len(added[0])} modules of others in it: {others}' if before and others else ''
        bound = 1 + IMPORT_GOAL / peer if judged else None
        figures.append(
            Figure(ours / peer, f'import over {name}', told=dict(peer=peer, ours=ours), note=note, bound=bound)
        )
    return figures


def swin(last: int) -> nn.Module:
    return SwinTransformer(dict(embed_dims=96, depths=[2, 2, 6, last], num_heads=[3, 6, 12, 24]))


def deit(depth: int) -> nn.Module:
    return VisionTransformer(dict(embed_dims=384, num_layers=depth, num_heads=6, feedforward_channels=1536))


# Name -> (the host at a depth of the scaled layers, that of the pretrained network, ours)
NETWORKS = {
    'ScaleNetSwin-T x2': (swin, 2, partial(ScaleNetSwin, 'tiny')),
    'ScaleNetDeiT-S x2': (deit, 12, partial(ScaleNetDeiT, 'deit-small')),
}


def loading(name: str) -> Timed:
    """Building, initialising and loading a file, against the host of the same depth.

    Args:
        name: a key of ``NETWORKS``.
    """
    host, depth, ours = NETWORKS[name]
    folder = tempfile.TemporaryDirectory()  # there as long as the runs
    source, deep = (str(Path(folder.name, n)) for n in ('source.pth', 'deep.pth'))
    with quiet():
        theirs, mine = host(2 * depth), ours()
    torch.save(host(depth).state_dict(), source)
    torch.save(theirs.state_dict(), deep)
    works: dict[str, tuple[Callable, Callable]] = {
        'build': (lambda: host(2 * depth), ours),
        'build and init_weights': (lambda: host(2 * depth).init_weights(), lambda: ours().init_weights()),
        'load a file': (
            lambda folder=folder: load_checkpoint(theirs, deep, 'cpu', strict=True, logger='silent'),
            lambda: mine.load_pretrained(source),
        ),
    }
    sides = {f'{side} {work}': run for work, runs in works.items() for side, run in zip(('peer', 'ours'), runs)}
    return Timed(
        {k: quiet()(run) for k, run in sides.items()},
        {f'{name}: {w}': lambda times, w=w: times[f'ours {w}'] / times[f'peer {w}'] for w in works},
        bounds={f'{name}: {work}': LOADING_GOAL for work in works},
    )


def cases(s: Settings) -> list[Case]:
    """At a smaller size without what only informs and the second network."""
    names = list(NETWORKS)[: None if s.size == 'full' else 1]
    makes = [partial(importing, s), *(partial(loading, name) for name in names)]
    return [Case('startup', 'startup', '', make) for make in makes]
