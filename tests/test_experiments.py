"""The paper's rows as configs: each is written from its row, builds, counts and trains what the paper says."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models import VisionTransformer
from test_configs import images  # noqa: F401
from test_counts import DEIT, PER_RANK, SWIN, swin_params, swin_stage, vit_params

import scalenet_mm  # noqa: F401
from scalenet_mm.core.flops import meta_parameters
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.core.tying import scaled_layers
from scalenet_mm.experiments.commands import make_configs
from scalenet_mm.experiments.paper.recount import ROWS, find
from scalenet_mm.runner.config import complete_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
LEAVES = sorted({row.config for row in ROWS if not row.is_scalenet})
CLASSIFIERS = [leaf for leaf in LEAVES if re.match(r'\w+/(deit|swin)_', leaf)]
GROWTH = ('random', 'stack', 'interpolate', 'swa', 'zero')
# Sec. IV-A1 and IV-C4
DROP_PATH = dict(deit_t=0.0, deit_s=0.2, deit_b=0.5, swin_t=0.2, swin_s=0.2, swin_b=0.5)
NEW_LAYERS = dict(deit_t=2, deit_s=1, deit_b=1, swin_t=1, swin_s=1, swin_b=1)


def tool():
    return make_configs


def read(leaf: str) -> Config:
    return complete_config(Config.fromfile(CONFIGS / leaf))


@cache
def parent_of(model: str) -> Config:
    return read(f'scalenet_{model}_100e.py')


def split(leaf: str) -> tuple[str, str]:
    """``'ablations/deit_b_wspt_lora_r4_100e.py'`` -> ``('deit_b', 'wspt_lora_r4')``."""
    return re.fullmatch(r'\w+/(\w{4}_[tsb])_(\w+?)(?:_\d+e)?\.py', leaf).groups()


def built(cfg: Config):
    init_default_scope('mmpretrain')
    cfg.model.pop('train_cfg', None)
    with meta_parameters():
        return MODELS.build(cfg.model)


# --- the table of rows


def test_every_row_has_a_key_of_its_own_and_a_config_that_is_there():
    keys = [row.key for row in ROWS]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r'(table[1-9]|fig6)/(deit|swin)_[tsb]/[a-z0-9_.]+', key) for key in keys)
    assert [row.config for row in ROWS if not (CONFIGS / row.config).is_file()] == []


def test_the_tables_have_the_lines_of_the_paper_and_ours_are_marked():
    """Counted in the digest of the paper, the lines that its source lost included; drop paths are our choice."""
    theirs = Counter(row.table for row in ROWS if 'our row' not in row.remark)
    expected = {'I': 36, 'II': 30, 'III': 12, 'IV': 6, 'V': 6, 'VI': 7, 'VII': 6, 'VIII': 4, 'IX': 4}
    assert theirs == {**expected, 'Fig. 6': 14}
    ours = {row.key.split('/')[-1] for row in ROWS if 'our row' in row.remark}
    assert ours == {'zero', 'tied_lora_r10', 'wspt_lora_r16', 'wspt_lora_r8', 'x4'}


@pytest.mark.parametrize(
    ('key', 'result'),
    [
        ('table1/swin_t/swa', {'top-1': 81.28}),
        ('table1/deit_b/random', {'top-1': 82.22}),
        ('table2/deit_b/adapter_r32', {'top-1': 82.28}),
        ('table3/deit_b/layers_10_11_12', {'top-1': 82.30}),
        ('table3/swin_b/all_stages', {'top-1': 83.48}),
        ('table4/swin_b/x3', {'top-1': 83.58}),
        ('table5/deit_b/stack', {'top-1': 82.23}),
        ('table6/deit_b/lora_r4', {'top-1': 82.15}),
        ('table7/deit_b/scratch_300_epochs', {'top-1': 75.11, 'hours': 89.5}),
        ('table8/swin_t', {'box AP': 46.7, 'box AP50': 68.7, 'box AP75': 51.2}),
        ('table9/swin_s/base', {'mIoU': 47.72}),
        ('fig6/deit_b/drop_path_0.3', {}),
        ('table1/deit_s/stack', {}),
    ],
)
def test_a_row_is_found_by_its_key_and_tells_what_the_paper_prints(key, result):
    assert find(key).result == result


def test_a_key_without_a_variant_is_the_scalenet_row():
    for row in ROWS:
        found = find(row.key.rpartition('/')[0])
        assert found.config == row.parent and (found.table, found.model) == (row.table, row.model)
    assert find('fig6/deit_s').key == 'fig6/deit_s/drop_path_0.2'
    assert find('table5/swin_b').key == 'table5/swin_b/stack'


def test_an_unknown_key_is_refused_with_the_nearest_ones():
    with pytest.raises(ValueError, match=r"no row 'table1/deit_t/stak'.*'table1/deit_t/stack'"):
        find('table1/deit_t/stak')


def test_a_config_has_one_printed_accuracy_in_all_tables():
    printed = {}
    for row in ROWS:
        if 'top-1' in row.result:
            printed.setdefault(row.config, set()).add(row.result['top-1'])
    assert all(len(values) == 1 for values in printed.values())


# --- the configs and their rows


def test_the_committed_configs_are_what_the_rows_say():
    assert list(tool().differences(tool().leaves())) == []


def test_a_config_that_drifted_from_its_row_is_named(tmp_path, monkeypatch, capsys):
    made = tool()
    monkeypatch.setattr(made, 'CONFIGS', tmp_path)
    assert made.main([]) == 0
    assert made.main(['--check']) == 0 and f'{len(LEAVES)} configs' in capsys.readouterr().out
    drifted = tmp_path / 'ablations' / 'deit_b_x3_100e.py'
    drifted.write_text(drifted.read_text().replace('times=3', 'times=4'))
    (tmp_path / 'baselines' / 'swin_t_swa_100e.py').unlink()
    (tmp_path / 'baselines' / 'swin_t_mine_100e.py').write_text('')
    with pytest.raises(SystemExit) as wrong:
        made.main(['--check'])
    assert str(wrong.value).splitlines() == [
        'configs/ablations/deit_b_x3_100e.py differs from its row',
        'configs/baselines/swin_t_swa_100e.py is missing',
        'configs/baselines/swin_t_mine_100e.py belongs to no row',
        'Write them anew with: scalenet experiment make-configs',
    ]


def test_rows_that_share_a_config_must_agree(monkeypatch):
    made = tool()
    first = next(row for row in ROWS if row.config == 'ablations/deit_b_wspt_lora_r16_100e.py')
    monkeypatch.setattr(made, 'ROWS', (*ROWS, replace(first, drop_path_rate=0.1)))
    with pytest.raises(ValueError, match=r"deit_b_wspt_lora_r16_100e.py stands for .*'table2/.*'table6/"):
        made.leaves()


@pytest.mark.parametrize('leaf', ['baselines', 'ablations'])
def test_leaves_are_short_and_start_with_their_command_and_the_papers_figure(leaf):
    for path in (CONFIGS / leaf).glob('*.py'):
        command, figure, *rest = path.read_text().splitlines()
        assert re.fullmatch(rf'# python tools/(train|test)\.py configs/{leaf}/{path.name}( CHECKPOINT)?', command)
        assert re.match(r'# (Table|Fig\.) ', figure) and figure.endswith('Not run here.') and len(rest) <= 18


# --- what a leaf trains, by its name


def expected_train(model: str, kind: str) -> str:
    if kind in (*GROWTH, 'wspt', 'scratch'):
        return 'all'
    if kind.startswith('tied_lora'):
        return 'adjustments'
    return 'all' if model in ('deit_t', 'deit_s') else 'increments'  # Sec. IV-A1


def expected_drop_path(model: str, kind: str) -> float:
    if kind == 'scratch':
        return 0.1  # DeiT's official script
    return int(kind[-2:]) / 10 if kind.startswith('drop_path') else DROP_PATH[model]


CHANGED = ('model.backbone.scale', 'model.backbone.drop_path_rate', 'filename')
POLICY = ('policy.', 'model_wrapper_cfg.policy.', 'optim_wrapper.paramwise_cfg.policy.')
SCRATCH = (
    'optim_wrapper.optimizer.lr',
    'optim_wrapper.clip_grad',
    'param_scheduler',
    'train_cfg.max_epochs',
    'load_from',
)


def flat(value, path=''):
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f'{path}{key}.').items()}
    return {path.rstrip('.'): value}


@pytest.mark.parametrize('leaf', CLASSIFIERS)
def test_a_leaf_trains_as_its_name_says_and_differs_from_scalenets_config_in_nothing_else(leaf):
    model, kind = split(leaf)
    cfg, parent = read(leaf), parent_of(model)
    row = next(row for row in ROWS if row.config == leaf)
    assert cfg.model.backbone.drop_path_rate == expected_drop_path(model, kind) == row.drop_path_rate
    policy = cfg.optim_wrapper.paramwise_cfg.policy
    assert policy == cfg.model_wrapper_cfg.policy == dict(train=row.train)
    if kind == 'base':
        assert row.epochs == 0
    else:
        assert row.train == expected_train(model, kind)
        assert cfg.train_cfg.max_epochs == row.epochs == int(re.search(r'_(\d+)e\.py', leaf)[1])
    assert cfg.load_from == (parent.load_from if row.pretrained else None)
    mine, theirs = flat(cfg.to_dict()), flat(parent.to_dict())
    differs = {k for k in mine.keys() | theirs.keys() if mine.get(k, ...) != theirs.get(k, ...)}
    allowed = CHANGED + POLICY + (SCRATCH if kind == 'scratch' else ())
    assert [path for path in differs if not path.startswith(allowed)] == []


@pytest.mark.parametrize('epochs', [100, 300])
def test_training_from_scratch_follows_deits_official_script(epochs):
    cfg = read(f'baselines/deit_s_scratch_{epochs}e.py')
    warmup, cosine = cfg.param_scheduler
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.clip_grad) == (5e-4, None)
    assert warmup.end == cosine.begin == 5 and warmup.start_factor * 5e-4 == 1e-6
    assert cosine.eta_min == 1e-5 and cfg.train_cfg.max_epochs == epochs and cfg.load_from is None


def test_dense_bases_are_the_scaled_configs_unscaled():
    for name in ('mask_rcnn_swin_t', 'mask_rcnn_swin_s', 'upernet_swin_t', 'upernet_swin_s'):
        row = next(row for row in ROWS if row.config == f'baselines/{name}_base.py')
        cfg, parent = read(row.config), read(row.parent)
        assert cfg.model.backbone.pop('scale') == dict(times=1, adjust=None)
        parent.model.backbone.pop('scale')
        assert cfg.model == parent.model and cfg.load_from == parent.load_from


# --- what a leaf builds, by its name


def expected_params(model: str, kind: str) -> int:
    """From layer sizes: (width, layers, a block's parameters without norms, its norms) of every stage."""
    if model in DEIT:
        d = DEIT[model]
        base, stages = vit_params(d), [(d, 12, 12 * d * d + 9 * d, 4 * d)]
    else:
        dims, depths = SWIN[model]
        base = swin_params(dims, depths)
        stages = [(d, n, *rest) for n, (d, *rest) in ((n, swin_stage(dims, i)) for i, n in enumerate(depths))]
    scaled, times = {len(stages) - 1}, 2
    adjust, rank = 'ParallelAdapter', 16
    if kind == 'base':
        return base
    if kind in GROWTH:
        _, _, block, norms = stages[-2] if len(stages) > 1 else stages[0]
        return base + NEW_LAYERS[model] * (block + norms)
    if kind == 'scratch':
        return base + sum(n * (block + norms) for _, n, block, norms in stages)
    if kind.startswith('layers'):
        ((d, _, _, norms),) = stages
        return base + 3 * norms + 6 * PER_RANK[adjust] * rank * d
    if found := re.search(r'(lora|adapter)_r(\d+)$', kind):
        adjust, rank = dict(lora='LoRA', adapter='ParallelAdapter')[found[1]], int(found[2])
        times = 2 if kind.startswith(('wspt', 'tied')) else 1
    if kind == 'wspt':
        rank = 0
    if found := re.fullmatch(r'x(\d)', kind):
        times = int(found[1])
    if found := re.fullmatch(r'stage_(\d)', kind):
        scaled = {int(found[1]) - 1}
    if kind == 'all_stages':
        scaled = set(range(4))
    total = base
    for i, (d, n, _, norms) in enumerate(stages):
        new = n * (times - 1) if i in scaled else 0
        total += (n + new) * PER_RANK[adjust] * rank * d + new * norms
    return total


def expected_map(kind: str, depth: int) -> tuple[int, ...]:
    if kind.startswith('layers'):
        reused = [int(i) - 1 for i in kind.split('_')[1:]]
        return tuple(i for i in range(depth) for _ in range(2 if i in reused else 1))
    if kind == 'order_stack':
        return (*range(depth), *range(depth))
    return tuple(i for i in range(depth) for _ in range(2))


# The fast tier builds every kind of leaf once, the slow tier the rest.
FIRST = {re.sub(r'\d+', '', split(leaf)[1]) + leaf.partition('_')[0]: leaf for leaf in reversed(CLASSIFIERS)}
BUILT = [leaf if leaf in FIRST.values() else pytest.param(leaf, marks=pytest.mark.slow) for leaf in CLASSIFIERS]


@pytest.mark.parametrize('leaf', BUILT)
def test_a_leaf_builds_the_network_that_its_name_says(leaf):
    model, kind = split(leaf)
    net = built(cfg := read(leaf))
    params = sum(p.numel() for p in net.parameters())
    assert params == expected_params(model, kind)
    containers = [layers for _, layers in scaled_layers(net)]
    if kind in (*GROWTH, 'scratch'):
        assert {c.growth.type for c in containers} == {'random' if kind == 'scratch' else kind}
    if kind.startswith(('layers', 'order', 'drop')):
        layers = containers[-1]
        assert layers.layer_map.sources == expected_map(kind, layers.layer_map.depth)
    trained = TrainPolicy(**cfg.optim_wrapper.paramwise_cfg.policy).apply(net)
    assert trained and (len(trained) == len(list(net.parameters()))) == (
        cfg.optim_wrapper.paramwise_cfg.policy.train == 'all'
    )


def test_the_network_from_scratch_is_the_hosts_own_at_24_layers():
    net = built(read('baselines/deit_s_scratch_100e.py')).backbone
    arch = {**VisionTransformer.arch_zoo['deit-small'], 'num_layers': 24}
    with meta_parameters():
        host = VisionTransformer(arch, img_size=224, patch_size=16)
    shapes = {name: tuple(t.shape) for name, t in host.state_dict().items()}
    assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == shapes
    assert len({id(p) for p in net.parameters()}) == len(list(host.parameters()))


RUN = [
    ('baselines/deit_t_base.py', 'test'),
    ('baselines/deit_t_swa_100e.py', 'train'),
    ('baselines/deit_t_tied_lora_r10_100e.py', 'train'),
    ('ablations/swin_t_wspt_100e.py', 'train'),
    ('baselines/deit_s_scratch_300e.py', 'train'),
]


@pytest.mark.slow
@pytest.mark.parametrize(('leaf', 'what'), RUN)
def test_a_leaf_runs_at_full_size_by_the_command_in_its_head(leaf, what, images, tmp_path):  # noqa: F811
    """From an unscaled checkpoint of the host, with data and batch cut down."""
    cfg = read(leaf)
    scratch = cfg.load_from is None
    cfg.model.backbone.scale = dict(times=1, adjust=None)
    init_default_scope('mmpretrain')
    source = tmp_path / 'source.pth'
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, source)
    options = [
        f'test_dataloader.dataset.data_root={images}',
        'val_dataloader.batch_size=2',
        'test_dataloader.batch_size=2',
        'val_dataloader.num_workers=0',
        'test_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
        'test_dataloader.persistent_workers=False',
        f'val_dataloader.dataset.data_root={images}',
    ]
    if what == 'train':
        options += [
            *([] if scratch else [f'load_from={source}']),
            f'train_dataloader.dataset.data_root={images}',
            'train_dataloader.batch_size=2',
            'train_dataloader.num_workers=0',
            'train_dataloader.persistent_workers=False',
            'train_cfg.max_epochs=1',
            'param_scheduler.0.end=1',
            'param_scheduler.1.begin=0',
            'default_hooks.logger.interval=1',
        ]
    first = (CONFIGS / leaf).read_text().splitlines()[0].removeprefix('# python ')
    command = first.replace('CHECKPOINT', str(source)).split()
    done = subprocess.run(
        [sys.executable, *command, '--work-dir', str(tmp_path / 'run'), '--cfg-options', *options],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert 'accuracy/top1' in output and 'not match exactly' not in output
    assert ('[1][2/2]' in output) == (what == 'train')
