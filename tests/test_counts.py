"""Parameters, sizes and the two tools that print them; expected integers are those of the paper's tables."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import scalenet
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models import SwinTransformer, VisionTransformer

import scalenet_mm
from scalenet_mm import LayerMap, TrainPolicy
from scalenet_mm.commands import inspect as inspect_command
from scalenet_mm.core.flops import meta_parameters
from scalenet_mm.core.roles import Count, Role, count, count_by_use, total
from scalenet_mm.core.tying import scaled_layers
from scalenet_mm.experiments.paper import printed as paper_printed
from scalenet_mm.experiments.paper import recount as paper
from scalenet_mm.models.counts import Cost, adjustments, inspect, measure, unshared
from scalenet_mm.models.layer_table import WIDTH, draw_maps

ROOT = Path(__file__).resolve().parents[1]
UNSCALED = dict(times=1, adjust=None)
DEIT = {'deit_t': 192, 'deit_s': 384, 'deit_b': 768}  # width; heads are 64 wide
SWIN = {'swin_t': (96, (2, 2, 6, 2)), 'swin_s': (96, (2, 2, 18, 2)), 'swin_b': (128, (2, 2, 18, 2))}
CLASSES = 1000


def lora(rank, **scale):
    return dict(scale, adjust=dict(type='LoRA', rank=rank))


def adapter(rank, **scale):
    return dict(scale, adjust=dict(type='ParallelAdapter', rank=rank))


def built(name, scale=None, **kwargs):
    with meta_parameters():
        return scalenet_mm.build(name, scale=scale, **kwargs)


def params(name, scale=None):
    return sum(p.numel() for p in built(name, scale).parameters())


def run(tool, *args):
    return subprocess.run(scalenet(*tool.split(), *args), capture_output=True, text=True, cwd=ROOT, timeout=600)


# --- the paper's integers


@pytest.mark.parametrize(
    ('name', 'base', 'scaled'),
    [
        ('deit_t', 5_717_416, 6_463_912),
        ('deit_s', 22_050_664, 23_543_656),
        ('deit_b', 86_567_656, 89_553_640),
        ('swin_t', 28_288_354, 29_246_818),
        ('swin_s', 49_606_258, 51_302_002),
        ('swin_b', 87_768_224, 90_029_216),
    ],
)
def test_base_and_scaled_models_have_the_parameters_of_table_1(name, base, scaled):
    assert (params(name, UNSCALED), params(name)) == (base, scaled)


@pytest.mark.parametrize(
    ('name', 'scale', 'expected'),
    [
        ('deit_t', lora(16, times=1), 6_307_240),
        ('deit_s', lora(16, times=1), 23_230_312),
        ('deit_b', lora(16, times=1), 88_926_952),
        ('deit_t', adapter(32, times=1), 6_454_696),
        ('deit_s', adapter(32, times=1), 23_525_224),
        ('deit_b', adapter(32, times=1), 89_516_776),
        ('deit_b', dict(layers=(0, 1, 2)), 87_314_152),
        ('deit_b', dict(layers=(9, 10, 11)), 87_314_152),
        ('swin_t', dict(stages=(2,)), 29_372_770),
    ],
)
def test_adjustments_at_the_original_depth_and_partial_reuse_have_the_papers_parameters(name, scale, expected):
    assert params(name, scale) == expected


@pytest.mark.parametrize(
    ('name', 'scale', 'millions'),
    [
        ('swin_t', lora(8, times=1), '28.854'),
        ('swin_s', lora(8, times=1), '50.761'),
        ('swin_b', lora(8, times=1), '89.308'),
        ('swin_t', adapter(16, times=1), '28.995'),
        ('swin_s', adapter(16, times=1), '51.050'),
        ('swin_b', adapter(16, times=1), '89.693'),
        ('swin_b', dict(stages=(0,)), '89.735'),
        ('swin_b', dict(stages=(1,)), '89.777'),
        ('deit_b', adapter(8), '88.08'),
        ('deit_b', adapter(32), '92.50'),
        ('deit_b', dict(times=3), '91.07'),
        ('swin_b', dict(times=3), '90.37'),
    ],
)
def test_ablation_rows_have_the_parameters_of_the_digest(name, scale, millions):
    digits = len(millions.partition('.')[2])
    assert f'{params(name, scale) / 1e6:.{digits}f}' == millions


@pytest.mark.parametrize(('rank', 'millions'), [(4, '87.747'), (8, '88.927'), (16, '91.286')])
def test_lora_rows_of_table_6_are_exact_when_norms_are_counted_as_tied(rank, millions):
    norms_of_new_layers = 12 * 2 * 2 * 768
    assert f'{(params("deit_b", lora(rank)) - norms_of_new_layers) / 1e6:.3f}' == millions


def test_the_increments_of_deit_b_are_3024384_parameters():
    model = built('deit_b')
    TrainPolicy().apply(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 3_024_384
    assert total(count_by_use(model).values()).trainable == 3_024_384


# --- closed forms


def vit_params(d):
    block = (3 + 1 + 4 + 4) * d * d + (3 + 1 + 4 + 1) * d + 2 * 2 * d
    return (3 * 16 * 16 + 1) * d + d + 197 * d + 12 * block + 2 * d + (d + 1) * CLASSES


def swin_stage(dims, stage):
    """(width, parameters of a block without norms, of its norms) with 32-wide heads and windows of 7."""
    d = dims * 2**stage
    return d, 12 * d * d + 9 * d + 13 * 13 * d // 32, 4 * d


def swin_params(dims, depths):
    count = (3 * 4 * 4 + 1) * dims + 2 * dims
    for stage, depth in enumerate(depths):
        d, block, norms = swin_stage(dims, stage)
        count += depth * (block + norms)
        count += stage and 2 * d * d + 2 * 2 * d  # merging: linear without bias 2 d -> d and its norm
    return count + 2 * 8 * dims + (8 * dims + 1) * CLASSES


# Parameters an instance gets for each unit of rank x width: the linears' d_in + d_out.
PER_RANK = {'ParallelAdapter': (1 + 4) + (4 + 1), 'LoRA': (1 + 3) + (1 + 1) + (1 + 4) + (4 + 1)}


@pytest.mark.parametrize('kind', PER_RANK)
@pytest.mark.parametrize(('times', 'rank'), [(1, 4), (2, 5), (3, 16)])
def test_rank_and_times_move_the_count_of_deit_by_the_closed_form(kind, times, rank):
    scale = dict(times=times, adjust=dict(type=kind, rank=rank))
    for name in ('deit_t', 'deit_b'):
        d = DEIT[name]
        increment = 12 * times * PER_RANK[kind] * rank * d + 12 * (times - 1) * 4 * d
        assert params(name, scale) == vit_params(d) + increment


@pytest.mark.parametrize('stages', [(3,), (0,), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize(('times', 'rank', 'kind'), [(2, 16, 'ParallelAdapter'), (3, 4, 'LoRA')])
def test_stage_rank_and_times_move_the_count_of_swin_by_the_closed_form(stages, times, rank, kind):
    dims, depths = SWIN['swin_t']
    increment = 0
    for stage, depth in enumerate(depths):
        d, _, norms = swin_stage(dims, stage)
        new = (times - 1) * depth if stage in stages else 0
        increment += (depth + new) * PER_RANK[kind] * rank * d + new * norms
    scale = dict(stages=stages, times=times, adjust=dict(type=kind, rank=rank))
    assert params('swin_t', scale) == swin_params(dims, depths) + increment


def test_only_reused_layers_are_adjusted_when_some_are_and_all_when_told():
    d = DEIT['deit_t']
    for layers in ((0,), (2, 5, 7)):
        k = len(layers)
        assert params('deit_t', dict(layers=layers)) == vit_params(d) + 2 * k * 10 * 16 * d + k * 4 * d
        everywhere = params('deit_t', dict(layers=layers, adjust_on='all'))
        assert everywhere == vit_params(d) + (12 + k) * 10 * 16 * d + k * 4 * d


# --- uses, sizes, roles


NO_COST = Cost(0, None, 0, 0, 0)


def deep_host(name, depths):
    """mmpretrain's own network at the scaled depth, independent layers."""
    with meta_parameters():
        if name.startswith('swin'):
            arch = SwinTransformer.arch_zoo[{'t': 'tiny', 's': 'small', 'b': 'base'}[name[-1]]]
            return SwinTransformer({**arch, 'depths': list(depths)})
        arch = VisionTransformer.arch_zoo[f'deit-{name[-1]}']
        return VisionTransformer({**arch, 'num_layers': depths[0]})


@pytest.mark.parametrize(
    ('name', 'scale', 'depths'),
    [
        ('deit_b', None, [24]),
        ('deit_b', dict(layers=(0, 1, 2)), [15]),
        ('deit_t', lora(8, times=3), [36]),
        ('swin_t', None, [2, 2, 6, 4]),
        ('swin_t', dict(times=(1, 2, 1.5, 3)), [2, 4, 9, 6]),
        ('swin_t', dict(start='function'), [2, 2, 6, 4]),
    ],
)
def test_uses_are_the_parameters_of_a_really_built_deep_host_with_the_same_adjustments(name, scale, depths):
    model, deep = built(name, scale, num_classes=None), deep_host(name, depths)
    counts = count_by_use(model)
    adjusting = sum(c.params for (role, _), c in counts.items() if role is Role.ADJUSTMENT)
    own = sum(p.numel() for p in deep.parameters())
    assert total(counts.values()).uses == own + adjusting
    plain = unshared(model, NO_COST)
    assert plain.params == own
    assert plain.bytes == sum(t.numel() * t.element_size() for t in deep.state_dict().values())


def test_the_unshared_network_costs_the_flops_of_a_really_built_deep_host():
    model, deep = built('swin_t', num_classes=None), deep_host('swin_t', [2, 2, 6, 4])
    cost = measure(model)
    assert unshared(model, cost).flops == unshared(model, cost).flops_with_adjustments
    assert unshared(model, cost).flops == measure(deep).flops < cost.flops_with_adjustments


def test_the_split_by_use_adds_up_to_the_roles():
    model = built('swin_t', dict(times=(1, 2, 1, 3)))
    split = count_by_use(model)
    assert {uses for role, uses in split if role is Role.SHARED} == {2, 3}
    for role, counted in count(model).items():
        assert sum((c for (r, _), c in split.items() if r is role), Count()) == counted
    assert all(c.uses == uses * c.params for (_, uses), c in split.items())


def test_buffers_that_are_not_saved_do_not_count_as_saved():
    net = torch.nn.BatchNorm1d(4)
    net.register_buffer('scratch', torch.zeros(1000), persistent=False)
    saved = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    assert unshared(net, NO_COST).bytes == saved


@pytest.mark.parametrize('name', ['deit_t', pytest.param('swin_t', marks=pytest.mark.slow)])
def test_the_saved_size_is_that_of_a_saved_file(name, tmp_path):
    model = scalenet_mm.build(name)
    torch.save(model.state_dict(), tmp_path / 'net.pth')
    size = (tmp_path / 'net.pth').stat().st_size
    assert measure(model).bytes < size < 1.01 * measure(model).bytes


# --- drawing


def test_a_layer_map_is_drawn_as_a_reader_expects_it():
    maps = {'a': LayerMap((0, 1)), 'b': LayerMap((0, 0, 1))}
    assert draw_maps(maps, {'a': [{}] * 2, 'b': [dict(fc1='X', fc2='X')] * 2 + [{}]}) == '\n'.join(
        [
            'a: 2 source layers -> 2 instances',
            '  instance   0  1',
            '  source     0  1',
            '  adjusted   a  a',
            'b: 2 source layers -> 3 instances',
            '  instance   0  1  2',
            '  source     0  0* 1',
            '  adjusted   b  b  a',
            'adjustments: a = none',
            '             b = X on fc1, fc2',
        ]
    )
    assert draw_maps({'a': maps['a']}, {'a': [{}] * 2}) == (
        'a: 2 source layers -> 2 instances\nadjustments: none, on every instance'
    )


@pytest.mark.parametrize(('depth', 'times'), [(12, 2), (12, 4), (24, 5)])
def test_long_maps_are_cut_into_lines_that_fit_and_lose_nothing(depth, times):
    layer_map = LayerMap.build(depth, times, 'interpolate')
    drawn = draw_maps({'layers': layer_map}, {'layers': [{}] * len(layer_map)}).splitlines()
    assert all(len(line) <= WIDTH for line in drawn)
    words = [line.split() for line in drawn]
    instances = [int(w) for line in words if line[0] == 'instance' for w in line[1:]]
    sources = [w for line in words if line[0] == 'source' for w in line[1:]]
    assert instances == list(range(depth * times))
    assert [int(s.rstrip('*')) for s in sources] == list(layer_map.sources)
    assert [not s.endswith('*') for s in sources] == [layer_map.owner(i) == i for i in instances]


def test_adjustments_are_told_by_instance():
    model = built('deit_t', dict(layers=(0,), start='function'))
    ((_, layers),) = scaled_layers(model)
    first, second, third, *_ = adjustments(layers)
    assert set(first) == {'fc1', 'fc2'} and set(second) == {'proj', 'fc1', 'fc2'} and third == {}
    assert second['proj'] == 'Gate' and first['fc1'] == 'ParallelAdapter(rank=16, act=GELU)'


# --- the tools


def test_inspect_prints_what_it_counts_in_lines_a_reader_can_follow():
    result = run('inspect', 'deit_b')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    shared = next(line for line in lines if line.startswith('shared:')).split()
    assert shared[-5:] == ['2', '96', '85,017,600', '0', '170,035,200']
    assert next(line for line in lines if line.startswith('adjustment:')).split()[-2] == '2,949,120'
    assert next(line for line in lines if line.startswith('total')).split()[1:4] == ['296', '89,553,640', '3,024,384']
    costs = {line.split()[0]: line.split()[2:] for line in lines if ' network ' in line[:22]}
    assert costs['unscaled'][:1] == ['86,567,656'] and costs['this'][0] == '89,553,640'
    assert any(line.split()[:4] == ['source', '0', '0*', '1'] for line in lines)


CONFIG = """
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='ScaleNetSwin', arch='tiny', img_size=256, scale=dict(times=3)),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=768),
)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-4),
    constructor='ScaleNetOptimWrapperConstructor',
    paramwise_cfg=dict(policy=dict(also=['head.fc'])),
)
"""


def test_inspect_reads_the_scale_policy_and_head_of_a_config(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG)
    report = json.loads(json.dumps(inspect(config, input_size=(224, 224)).to_json()))
    assert report['layer_maps']['backbone.stages.3.blocks'] == [0, 1, 0, 1, 0, 1]
    assert report['policy'] == dict(train='increments', also=['head.fc'])
    roles = {(r['role'], r['used_by']): r for r in report['roles']}
    assert roles['outer', 1]['trainable'] == 768 * 10 + 10 and roles['shared', 3]['trainable'] == 0
    networks = report['networks']
    assert networks['unscaled network']['params'] == swin_params(96, (2, 2, 6, 2)) - 769 * (CLASSES - 10)
    this, deep = networks['this network'], networks['unshared deep network']
    assert this['flops'] == deep['flops'] < this['flops_with_adjustments']
    assert this['bytes'] < deep['bytes'] and report['input_size'] == [224, 224]
    assert this['params'] == sum(r['params'] for r in report['roles'])


@pytest.mark.slow
def test_inspect_prints_its_report_as_json(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG)
    args = (config, '--json', '--input-size', 256, 320, '--scale', 'dict(times=2, adjust=dict(rank=4))')
    result = run('inspect', *args)
    assert result.returncode == 0, result.stderr
    scale = dict(times=2, adjust=dict(rank=4))
    assert json.loads(result.stdout) == json.loads(json.dumps(inspect(config, scale, (256, 320)).to_json()))


def test_inspect_takes_the_settings_that_train_takes(tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG)
    inspect_command.main([str(config), '--json', '--cfg-options', 'model.backbone.scale.times=2'])
    report = json.loads(capsys.readouterr().out)
    assert report['layer_maps']['backbone.stages.3.blocks'] == [0, 1, 0, 1] and report['model'] == str(config)


def test_the_policy_is_the_configs_and_everything_is_trained_where_nobody_freezes(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.replace("constructor='ScaleNetOptimWrapperConstructor',", ''))
    report = inspect(config)
    assert report.policy == TrainPolicy('all') and report.input_size == (224, 224)
    assert report.networks['this network'].trainable == report.networks['this network'].params
    assert Config.fromfile(config).model.backbone.img_size == 256  # Swin keeps no image size
    config.write_text(CONFIG.partition('optim_wrapper')[0] + "policy = dict(train='adjustments')\n")
    assert inspect(config).policy == TrainPolicy('adjustments')


def test_a_backbone_that_is_not_scaled_is_refused_by_name(tmp_path):
    config = tmp_path / 'plain.py'
    config.write_text(CONFIG.replace('ScaleNetSwin', 'mmpretrain.SwinTransformer').replace(', scale=dict(times=3)', ''))
    with pytest.raises(ValueError, match=r"type='ScaleNetDeiT' or 'ScaleNetSwin'"):
        inspect(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('args', 'says'),
    [
        (['vgg_16'], 'names no model'),
        (['deit_t', '--scale', 'dict(times=0)'], 'times must be a number >= 1'),
        (['deit_t', '--scale', 'dict(tims=2)'], "no key ['tims']"),
        (['swin_t', '--input-size', 128, 160], 'does not take images of 128 x 160'),
        (['no_such_config.py'], 'no_such_config.py'),
        (['deit_t', '--scale', 'times=2'], 'must be a dict as a config has it, such as "dict(times=2)", got times=2'),
        (['deit_t', '--scale', 'dict(times=two)'], 'must be a dict as a config has it'),
        (['deit_t', '--input-size', 0, 224], 'must be a whole number from 1 on, got 0'),
        (['deit_t', '--cfg-options', 'a.b=1'], 'deit_t is the short name of a model; name a config'),
    ],
)
def test_inspect_ends_wrong_arguments_with_one_line(args, says):
    result = run('inspect', *args)
    assert result.returncode == 2 and says in result.stderr and 'Traceback' not in result.stderr


ROW_KEYS = {'key', 'table', 'model', 'variant', 'config', 'params', 'params_paper', 'flops'}
RESULTS = ROOT / 'docs' / 'results' / 'paper_tables.json'


@pytest.mark.slow
def test_paper_tables_prints_rows_as_json_and_the_committed_ones_are_these():
    result = run('experiment paper-tables', '--json', '--table', 4)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert len(rows) == 8 and all(ROW_KEYS.issubset(row) for row in rows)
    tripled = next(r for r in rows if (r['model'], r['variant']) == ('DeiT-B', 'x3'))
    assert tripled['params'] == vit_params(768) + 36 * 10 * 16 * 768 + 24 * 4 * 768
    assert tripled['params_paper'] == 92.53 and tripled['flops_paper'] is None and tripled['remark']
    assert tripled['params_diff'] == pytest.approx(tripled['params'] / 1e6 - 92.53, abs=1e-6)
    assert rows == [row for row in json.loads(RESULTS.read_text()) if row['table'] == 'IV']


@pytest.mark.parametrize('row', [r for r in paper.ROWS if r.table != 'Fig. 6'][::9], ids=lambda row: row.key)
def test_a_sample_of_the_committed_rows_is_counted_anew(row):
    (counted,) = paper.compute([row])
    assert json.loads(json.dumps(counted)) in json.loads(RESULTS.read_text())


def test_every_row_that_differs_from_print_says_why_and_no_other_does():
    for row in json.loads(RESULTS.read_text()):
        printed = row['params_paper'], row['flops_paper']
        digits = paper.DECIMALS.get(row['table'], 2)
        params_differ = printed[0] is not None and f'{row["params"] / 1e6:.{digits}f}' != f'{printed[0]:.{digits}f}'
        flops_differ = printed[1] is not None and f'{row["flops"]:.1f}' != f'{printed[1]:.1f}'
        about = row['remark']
        assert ('#Params' in about) == params_differ, row
        assert ('printed FLOPs' in about.replace('(the printed FLOPs', '(')) == flops_differ, row
        if row['table'] not in ('V', 'VII'):  # they print no #Params
            untold = 'not legible' in about or paper_printed.OURS in about
            assert untold == (printed[0] is None), row


@pytest.mark.slow
def test_the_committed_tables_are_what_the_tool_writes(tmp_path):
    pytest.importorskip('transformers')  # Table X
    result = run('experiment paper-tables', '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'paper_tables.json').read_text() == RESULTS.read_text()
    made = (tmp_path / 'paper_tables.md').read_text().replace(str(tmp_path), 'docs/results')
    assert made == RESULTS.with_suffix('.md').read_text()
    assert {row['table'] for row in json.loads(RESULTS.read_text())} == {
        'I',
        'II',
        'III',
        'IV',
        'V',
        'VI',
        'VII',
        'VIII',
        'IX',
        'X',
    }


# Table I: what one layer has, and how many are needed "one by one until the size of ScaleNet's model is reached".
LAYER = {name: 12 * d * d + 13 * d for name, d in DEIT.items()}
LAYER |= {name: sum(swin_stage(dims, 2)[1:]) for name, (dims, _) in SWIN.items()}
TARGET = {
    'deit_t': (5_717_416, 6_463_912, '6.61'),
    'deit_s': (22_050_664, 23_543_656, None),
    'deit_b': (86_567_656, 89_553_640, '93.66'),
    'swin_t': (28_288_354, 29_246_818, '30.06'),
    'swin_s': (49_606_258, 51_302_002, '51.38'),
    'swin_b': (87_768_224, 90_029_216, '90.92'),
}
NAMES = {f'{host}-{size}': f'{host}_{size}'.lower() for host in ('DeiT', 'Swin') for size in 'TSB'}
GROWN = ('Random', 'Stack', 'Interpolate', 'SWA', 'Zero')


@pytest.mark.parametrize('name', TARGET)
def test_baselines_grow_one_by_one_to_scalenets_size_and_to_the_printed_count(name):
    (size, target, printed), added = TARGET[name], 0
    while size < target:
        size, added = size + LAYER[name], added + 1
    where = {} if name in DEIT else dict(stages=(2,))
    assert params(name, dict(growth='stack', new_layers=added, **where)) == size
    model = next(m for m, short in NAMES.items() if short == name)
    rows = [r for r in json.loads(RESULTS.read_text()) if (r['table'], r['model']) == ('I', model)]
    counted = {row['variant']: row['params'] for row in rows}
    assert [counted[variant] for variant in GROWN] == [size] * 5 and added == paper.NEW_LAYERS[model]
    assert counted['Tied LoRA r=10'] == counted['ScaleNet'] == target
    assert printed in (None, f'{size / 1e6:.2f}')
    assert (printed is None) == all(r['params_paper'] is None for r in rows if r['variant'] in GROWN)


def test_the_tables_say_which_printed_counts_follow_from_the_rule_of_the_baselines():
    text = RESULTS.with_suffix('.md').read_text()
    assert 'DeiT-T 2, DeiT-S 1, DeiT-B 1, Swin-T 1, Swin-S 1, Swin-B 1.' in text
    assert 'follow from the rule: DeiT-T, DeiT-B, Swin-T, Swin-S, Swin-B; that do not: none; ' in text


# --- detectors and segmentors


STOCK_DENSE = {
    ('VIII', 'Swin-T'): ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py', '47.8'),
    ('VIII', 'Swin-S'): ('mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py', '69.1'),
    ('IX', 'Swin-T'): ('mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', '59.9'),
    ('IX', 'Swin-S'): ('mmseg::swin/swin-small-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py', '81.3'),
}


@pytest.mark.parametrize('row', STOCK_DENSE, ids=' '.join)
def test_tables_8_and_9_are_the_frameworks_models_plus_the_closed_form(row, tmp_path):
    """Base: mmdet's and mmseg's own released config. ScaleNet: norms of two new blocks, r (d_in + d_out) on fc1 and
    fc2.
    """
    (base_config, printed), (dims, depths) = (STOCK_DENSE[row], SWIN[row[1].lower().replace('-', '_')])
    (tmp_path / 'stock.py').write_text(f'_base_ = {base_config!r}')
    cfg = Config.fromfile(tmp_path / 'stock.py')
    init_default_scope(cfg.default_scope)
    with meta_parameters():
        base = sum(p.numel() for p in MODELS.build(cfg.model).parameters())
    new_norms = depths[3] * swin_stage(dims, 3)[2]
    adapters = sum(
        (depth + (depth if stage == 3 else 0)) * 16 * 2 * (1 + 4) * dims * 2**stage
        for stage, depth in enumerate(depths)
    )
    counted = {r['variant']: r for r in paper.compute(r for r in paper.ROWS if (r.table, r.model) == row)}
    assert counted['base']['params'] == base and f'{base / 1e6:.1f}' == printed
    assert counted['ScaleNet']['params'] == base + new_norms + adapters
    assert list(counted) == ['base', 'ScaleNet']
    committed = [r for r in json.loads(RESULTS.read_text()) if (r['table'], r['model']) == row]
    assert committed == list(counted.values())
