"""``scalenet experiment NAME ...``: a module a name."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...commands.main import dispatch

COMMANDS = {
    'quickstart': 'source, ScaleNet and control on scenes of real digits: a table and a picture',
    'study': "rows of the paper's tables at a size that two cores decide",
    'early-exits': 'accuracy against depth, early exits against fixed depths',
    'lm-toy': 'a small Llama: source, ScaleNet, deep copy, full fine-tuning',
    'reproduce': 'one row of the paper: data, checkpoint, commands; or run it and keep a bundle',
    'analyze': 'Figs. 3 to 6 for any models',
    'cluster': 'what sharing and freezing save many GPUs, on paper',
    'gpu-check': 'training, export, speed and tests on a GPU in ten minutes',
    'benchmark': 'speed and memory beside the stock networks of mmdet, mmpretrain and timm',
    'paper-tables': "counts of the paper's networks beside the printed figures",
    'make-configs': 'the configs of baselines and ablations, from the rows',
    'model-zoo': 'model-index.yml, metafiles and docs/model_zoo.md, from the configs',
    'make-sources': 'the trained models that the quickstart starts from, and their card',
    'demo-data': "the demo data set, from scikit-learn's digits",
    'host-table': 'the table of docs/hosts.md, from its tests',
    'draw-method': 'the picture of the method',
}
ONE_THREAD = {'study', 'early-exits', 'lm-toy'}  # several networks of this size at once beat one on several threads


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] in ONE_THREAD:
        os.environ.setdefault('OMP_NUM_THREADS', '1')
    return dispatch('scalenet experiment', __package__, COMMANDS, argv)
