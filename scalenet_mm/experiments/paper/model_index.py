"""Every config as OpenMMLab's model index lists it, counted; figures of the paper never stand under ``Results``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...compat import quiet, scope_of
from ...core.flops import INPUT_SIZE, meta_parameters
from ...core.roles import count, total
from ...models.build import build
from ...models.counts import Cost, measure
from ...runner.config import load_config, trained_by
from ...tables import markdown_table
from .public import public_data
from .recount import ROWS, Row

NOT_RUN = 'not run'
PAPER = dict(
    Title='ScaleNet: Scaling up Pretrained Neural Networks with Incremental Parameters',
    URL='https://arxiv.org/abs/2510.18431',
)
TASKS = {'mmpretrain': 'Image Classification', 'mmdet': 'Object Detection', 'mmseg': 'Semantic Segmentation'}
DEMO_DATA = 'handwritten digits (docs/demo_data.md)'
UNLISTED = ('ablations', 'demo')  # folders of docs/model_zoo.md alone: nobody looks them up in an index
HOST_PADS_TO = 32  # mmdet's pad_size_divisor of the Swin configs


def config_files(folder: Path) -> list[Path]:
    """Every config below ``folder`` that can be run, by folder and name; ``_base_`` holds parts."""
    found = (p for p in folder.rglob('*.py') if '_base_' not in p.parts)
    return sorted(found, key=lambda p: (p.parent, p.name))


def image_size(cfg: Config) -> tuple[int, int]:
    """(H, W) of a test image as it reaches the backbone of a config."""
    prepared = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if scope_of(cfg) == 'mmpretrain':
        size = (cfg.model.get('backbone') or {}).get('img_size', INPUT_SIZE)
    elif size := prepared.get('size'):  # mmseg crops to it
        return tuple(size)
    else:
        steps = cfg.test_dataloader.dataset.pipeline
        scale = next((s['scale'] for s in steps if s.get('scale')), INPUT_SIZE)  # of the first Resize
        scale = (scale, scale) if isinstance(scale, int) else scale
        size = tuple(ceil(n / HOST_PADS_TO) * HOST_PADS_TO for n in sorted(scale))
    return (size, size) if isinstance(size, int) else tuple(size)


class Counter:
    """Counts the network of a config; one that several configs describe is built once."""

    def __init__(self):
        self._known: dict[str, Cost] = {}

    def __call__(self, cfg: Config) -> Cost:
        policy, size, backbone = trained_by(cfg), image_size(cfg), cfg.model.get('backbone') or {}
        free = {'drop_path_rate', 'init_cfg', 'with_cp'}  # nothing is counted of these
        kept = {k: v for k, v in backbone.items() if k not in free}
        key = repr((dict(cfg.model, backbone=kept), policy, size))
        if key not in self._known:
            with meta_parameters(), quiet():
                net = build(cfg._cfg_dict)
            policy.apply(net)
            self._known[key] = replace(measure(net, size), trainable=total(count(net).values()).trainable)
        return self._known[key]


def rows_of(config: str) -> list[Row]:
    """The rows of the paper that a config (relative to configs/) is for."""
    return [row for row in ROWS if row.config == config]


def read_results(folder: Path) -> dict[str, list[dict]]:
    """What was measured, by config: every ``*.json`` in ``folder`` with ``config``, ``metrics`` and ``command``.

    ``result.json`` of a bundle (``scalenet experiment reproduce``) is such a file.

    Raises:
        ValueError: if one lacks a key.
    """
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob('*.json')):
        result = json.loads(path.read_text())
        if missing := {'config', 'metrics', 'command'} - result.keys():
            raise ValueError(f'{path} has no {", ".join(sorted(missing))}: not a result.')
        found.setdefault(result['config'], []).append(result)
    return found


def entry(cfg: Config, config: str, costs: Cost, results: Iterable[Mapping]) -> dict[str, Any]:
    """A model of the index.

    Args:
        config: its file, relative to configs/.
        results: of it, as ``read_results`` gives them.
    """
    task, data = TASKS[cfg.default_scope], public_data(cfg)
    dataset = data.name if data else DEMO_DATA
    loop, scaled = cfg.train_cfg, cfg.get('auto_scale_lr') or {}
    length = {'Epochs': loop['max_epochs']} if 'max_epochs' in loop else {'Iterations': loop['max_iters']}
    measured = [
        {'Task': task, 'Dataset': dataset, 'Metrics': dict(r['metrics']), 'Command': r['command']} for r in results
    ]
    rows = rows_of(config)
    printed = [{'Rows': keys, 'Task': task, 'Dataset': dataset, **figures} for keys, figures in _printed(rows)]
    if rows and all(row.epochs == 0 for row in rows):  # a pretrained network, tested as it is
        length, costs = {'Epochs': 0}, replace(costs, trainable=0)
    batch = {'Batch Size': scaled['base_batch_size']} if 'base_batch_size' in scaled else {}
    return {
        'Name': Path(config).stem,
        'In Collection': collection_of(config),
        'Config': f'configs/{config}',
        'Metadata': {
            'Training Data': dataset,
            **length,
            **batch,
            'Training Resources': '; '.join(r.get('machine', 'not recorded') for r in results) or NOT_RUN,
            'Parameters': costs.params,
            'Trainable Parameters': costs.trainable,
            'FLOPs': costs.flops,
            'FLOPs with Adjustments': costs.flops_with_adjustments,
            'Input Size': list(image_size(cfg)),
        },
        **({'Rows': [row.key for row in rows]} if rows else {}),
        'Status': 'run' if measured else NOT_RUN,
        **({'Results': measured} if measured else {}),
        **({'Paper Results': printed} if printed else {}),
    }


def _printed(rows: Iterable[Row]) -> Iterator[tuple[list[str], dict]]:
    """Keys of the rows that print the same metrics, and what they print."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if metrics := {k: v for k, v in row.result.items() if k != 'hours'}:
            groups.setdefault(repr(metrics), []).append(row)
    for group in groups.values():
        metrics = {k: v for k, v in group[0].result.items() if k != 'hours'}
        hours = [row.result['hours'] for row in group if 'hours' in row.result]
        told = {'Metrics': metrics, **({'Training Hours': hours[0]} if hours else {})}
        yield [row.key for row in group], told


def collection_of(config: str) -> str:
    """``'ScaleNet'`` for what lies in configs/ itself, else with the folder's name."""
    folder = Path(config).parent.name
    return f'ScaleNet {folder}' if folder else 'ScaleNet'


def read_models(configs: Path, results: Path) -> dict[str, list[dict[str, Any]]]:
    """The entries of all configs, by their folder below ``configs``.

    Raises:
        ValueError: if two configs share a name, or a result belongs to none.
    """
    files = config_files(configs)
    names = [p.stem for p in files]
    if double := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f'A name of the index is a file name; several configs share {double}.')
    counter, measured = Counter(), read_results(results)
    models: dict[str, list[dict]] = {}
    for path in files:
        config, cfg = path.relative_to(configs), load_config(str(path))
        found = entry(cfg, config.as_posix(), counter(cfg), measured.pop(config.as_posix(), ()))
        models.setdefault(config.parent.as_posix(), []).append(found)
    if measured:
        raise ValueError(f'{results} has results of {sorted(measured)}, which are no configs here.')
    return models


def make_index(models: Mapping[str, list[dict]]) -> dict[str, dict[str, Any]]:
    """Path relative to the repository -> content, of each metafile and of ``model-index.yml``."""
    index = {
        (Path('configs') / folder / 'metafile.yml').as_posix(): {
            'Collections': [{'Name': found[0]['In Collection'], 'Paper': PAPER}],
            'Models': found,
        }
        for folder, found in models.items()
        if folder not in UNLISTED
    }
    return index | {'model-index.yml': {'Import': list(index)}}


# --- as a page -----------------------------------------------------------------------------------

HEAD = ('config', 'rows', 'parameters', 'trained', 'GFLOPs', 'paper', 'here')


def page(models: Mapping[str, list[dict]], command: str) -> str:
    """docs/model_zoo.md: one table a family."""
    lines = [
        '# Model zoo',
        '',
        f'Written by `{command}` from the configs themselves; `--check` compares. '
        'As data, but for ablations and demo: `model-index.yml`.',
        '',
        'Parameters and what the policy trains are counted from the built network. GFLOPs: multiply-adds of one test '
        "image (its size is the metafile's `Input Size`; of detectors and segmentors in the backbone alone), "
        'adjustments left out, in brackets with them. *rows*: of the paper and beside it; '
        '`scalenet experiment reproduce ROW` prints or runs all that one needs ([reproduce.md](reproduce.md)). '
        '*paper*: as printed there, hours on 8 GPUs. *here*: measured with this code, or "not run".',
    ]
    commands = {}
    for folder, found in models.items():
        title = 'Models' if folder == '.' else folder.capitalize()
        for data in dict.fromkeys(_data(m) for m in found):
            table = markdown_table(HEAD, [_cells(m, commands) for m in found if _data(m) == data], 'llrrrll')
            lines += ['', f'## {title}: {data}', '', table]
    if commands:
        lines += ['', '## Commands', '']
        lines += [f'{number}. `{text}`' for text, number in commands.items()]
    return '\n'.join(lines) + '\n'


def _data(model: Mapping) -> str:
    return model['Metadata']['Training Data']


def _cells(model: Mapping, commands: dict[str, int]) -> tuple[str, ...]:
    meta, printed = model['Metadata'], model.get('Paper Results', [])
    path = model['Config']
    here = [
        f'{_metrics(r["Metrics"])} [{commands.setdefault(r["Command"], len(commands) + 1)}]'
        for r in model.get('Results', [])
    ]
    paper = [_metrics(r['Metrics']) + (f' ({r["Training Hours"]} h)' if 'Training Hours' in r else '') for r in printed]
    return (
        f'[{model["Name"]}](../{path})',
        ', '.join(f'`{key}`' for key in model.get('Rows', ())) or '–',
        f'{meta["Parameters"]:,}',
        f'{meta["Trainable Parameters"]:,}',
        f'{_giga(meta["FLOPs"])} ({_giga(meta["FLOPs with Adjustments"])})',
        '; '.join(paper) or '–',
        '; '.join(here) or NOT_RUN,
    )


def _giga(flops: int) -> str:
    return format(flops / 1e9, '.2f' if flops >= 1e9 else '.4f')


def _metrics(metrics: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value}' for name, value in metrics.items())
