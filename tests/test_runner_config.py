"""What a config says is enough: the policy once, data sets plain, hooks free to change."""

import ast
import copy
import importlib
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.engine import ScaleNetOptimWrapperConstructor
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.runner import ScaleNetRunner
from scalenet_mm.runner.config import build_runner, complete_config, load_config, trained_by
from scalenet_mm.runner.preflight import preflight
from scalenet_mm.runner.slips import refuse_slips

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = [p for p in sorted(CONFIGS.rglob('*.py')) if p.parent.name != '_base_']
DETECTOR = CONFIGS / 'mask_rcnn_scalenet_swin_t_1x.py'
POLICY = dict(train='increments', also=['head'])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp('data'), ['coco', 'ade', 'imagenet'], train=19, val=19)


def child(tmp_path, text: str, base: Path = DETECTOR) -> Config:
    (tmp_path / 'mine.py').write_text(f'_base_ = {str(base)!r}\n{text}')
    return load_config(str(tmp_path / 'mine.py'))


# ---- data sets


GUIDES = {  # the folder made by make_demo_data, the config, and what the host's guide tells its reader to write
    'mmdet': (
        'coco',
        'mask_rcnn_scalenet_swin_t_1x.py',
        """
metainfo = dict(classes=tuple('0123456789'))
model = dict(roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)))
train_dataloader = dict(batch_size=1, dataset=dict(data_root='{root}/', ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'), metainfo=metainfo))
val_dataloader = test_dataloader = dict(dataset=dict(data_root='{root}/', metainfo=metainfo))
val_evaluator = test_evaluator = dict(ann_file='{root}/annotations/instances_val2017.json')
""",
    ),
    'mmseg': (
        'ade',
        'upernet_scalenet_swin_t_40k.py',
        """
metainfo = dict(classes=('background', *'0123456789'))
model = dict(decode_head=dict(num_classes=11), auxiliary_head=dict(num_classes=11))
train_dataloader = dict(dataset=dict(type='BaseSegDataset', data_root='{root}', metainfo=metainfo, img_suffix='.jpg',
    seg_map_suffix='.png', reduce_zero_label=True,
    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = test_dataloader = dict(dataset=dict(type='BaseSegDataset', data_root='{root}', metainfo=metainfo,
    img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=True,
    data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')))
""",
    ),
    'mmpretrain': (
        'imagenet',
        'scalenet_swin_t_100e.py',
        """
classes = [f'{{i:02d}}' for i in range(19)]
model = dict(head=dict(num_classes=19))
data_preprocessor = dict(num_classes=19)
train_dataloader = dict(dataset=dict(data_root='{root}', metainfo=dict(classes=classes)))
val_dataloader = test_dataloader = dict(dataset=dict(data_root='{root}', metainfo=dict(classes=classes)))
""",
    ),
}


@pytest.mark.parametrize('library', GUIDES)
def test_what_a_hosts_guide_says_about_own_data_works_below_our_configs(library, data, tmp_path):
    layout, leaf, text = GUIDES[library]
    cfg = child(tmp_path, text.format(root=data[layout]) + 'load_from = None\n', CONFIGS / leaf)
    cfg.model.backbone.init_cfg = None
    preflight(cfg)
    loader = complete_config(copy.deepcopy(cfg)).train_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(library):
        built = Runner.build_dataloader(loader, seed=0)
    named = {'mmdet': list('0123456789'), 'mmseg': ['background', *'0123456789']}
    named['mmpretrain'] = [f'{i:02d}' for i in range(19)]
    assert list(built.dataset.metainfo['classes']) == named[library] and len(built.dataset) == 19
    assert type(built.dataset).__name__ == 'SeededDataset', 'exact resume was added'
    item = built.dataset[0]
    assert item['inputs'].shape[0] == 3


def test_a_child_written_for_the_wrapper_of_0_1_0_means_what_it_meant(tmp_path):
    own = "data_root='mine/', ann_file='ann.json', data_prefix=dict(img='img/')"
    plain = child(tmp_path, f'train_dataloader = dict(dataset=dict({own}), sampler=dict(shuffle=False))\n')
    text = f'train_dataloader = dict(dataset=dict(dataset=dict({own})), sampler=dict(sampler=dict(shuffle=False)))\n'
    old = child(tmp_path, text)
    assert old.train_dataloader == plain.train_dataloader and plain.train_dataloader.dataset.ann_file == 'ann.json'
    whole = """
train_dataloader = dict(
    dataset=dict(_delete_=True, type='SeededDataset', dataset=dict(type='CocoDataset', ann_file='a.json', pipeline=[])),
    sampler=dict(_delete_=True, type='SeededSampler', sampler=dict(type='DefaultSampler', shuffle=True)),
)
custom_hooks = [dict(type='AnyDialectHook'), dict(type='ReseedHook')]
"""
    cfg = child(tmp_path, whole)
    before = copy.deepcopy(cfg.train_dataloader)
    assert complete_config(cfg).train_dataloader == before
    assert [hook.type for hook in cfg.custom_hooks] == ['AnyDialectHook', 'ReseedHook']
    thrice = """
policy = dict(train='increments', also=['neck'])
optim_wrapper = dict(paramwise_cfg=dict(policy=policy))
model_wrapper_cfg = dict(policy=policy)
"""
    once = "policy = dict(train='increments', also=['neck'])\n"
    assert complete_config(child(tmp_path, thrice)).to_dict() == complete_config(child(tmp_path, once)).to_dict()


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda p: p.stem)
def test_a_config_says_once_what_is_trained_has_plain_data_and_spells_the_rank(leaf):
    """The rank, so that the paper's configs stay the paper's, whatever the default."""
    cfg = Config.fromfile(leaf)
    assert 'model_wrapper_cfg' not in cfg and cfg.train_dataloader.dataset.type != 'SeededDataset'
    nested = (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('policy')
    assert nested == (dict(train='config') if 'policy' in cfg else nested)
    assert leaf.stem.startswith('rank_') or nested in (None, dict(train='config'))
    scale = cfg.model.backbone.get('scale')
    if scale and 'growth' not in scale and scale.get('adjust', 'unsaid') is not None:
        assert scale.adjust.rank >= 1


# ---- the policy


def test_the_policy_of_a_child_reaches_constructor_and_wrapper_and_a_second_call_changes_nothing(tmp_path):
    cfg = child(tmp_path, "policy = dict(train='increments', also=['neck'])\n")
    once = copy.deepcopy(complete_config(copy.deepcopy(cfg)))
    wanted = dict(train='increments', also=['neck'])
    assert once.optim_wrapper.paramwise_cfg.policy == once.model_wrapper_cfg.policy == wanted
    assert once.optim_wrapper.constructor == 'ScaleNetOptimWrapperConstructor'
    assert once.model_wrapper_cfg.type == 'ScaleNetDistributedDataParallel'
    assert trained_by(cfg) == TrainPolicy.from_cfg(wanted)
    assert complete_config(copy.deepcopy(once)).to_dict() == once.to_dict()


def test_a_config_of_a_users_own_needs_the_policy_alone():
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    cfg = complete_config(Config(dict(policy=POLICY, optim_wrapper=wrapper)))
    assert cfg.optim_wrapper.constructor == 'ScaleNetOptimWrapperConstructor'
    assert cfg.optim_wrapper.paramwise_cfg == dict(policy=POLICY)
    assert [hook.type for hook in cfg.custom_hooks] == ['AnyDialectHook']
    untouched = dict(optim_wrapper=wrapper, policy='a key of another project')
    assert complete_config(Config(copy.deepcopy(untouched))).to_dict() == untouched
    assert trained_by(Config(untouched)) == TrainPolicy('all')
    assert trained_by(Config(dict(model=dict()))) == TrainPolicy()


def test_find_unused_parameters_and_other_options_reach_our_wrapper():
    settings = dict(policy=POLICY, optim_wrapper=dict(type='OptimWrapper'), find_unused_parameters=True)
    cfg = complete_config(Config({**settings, 'model_wrapper_cfg': dict(static_graph=True)}))
    assert cfg.model_wrapper_cfg == dict(
        type='ScaleNetDistributedDataParallel', policy=POLICY, find_unused_parameters=True, static_graph=True
    )
    other = dict(type='MMFullyShardedDataParallel')
    assert complete_config(Config({**settings, 'model_wrapper_cfg': other})).model_wrapper_cfg == other


def test_a_constructor_given_as_a_class_is_the_one_of_its_name():
    wrapper = dict(type='OptimWrapper', constructor=ScaleNetOptimWrapperConstructor)
    cfg = complete_config(Config(dict(policy=POLICY, optim_wrapper=wrapper)))
    assert cfg.optim_wrapper.paramwise_cfg.policy == POLICY and trained_by(cfg) == TrainPolicy.from_cfg(POLICY)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (dict(constructor='LearningRateDecay'), "constructor='LearningRateDecay'.*leave the constructor out"),
        (dict(paramwise_cfg=dict(policy=dict(train='all'))), "policy is {'train': 'all'}.*change the top-level one"),
    ],
)
def test_what_contradicts_the_policy_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        complete_config(Config(dict(policy=POLICY, optim_wrapper=dict(type='OptimWrapper', **changes))))


@pytest.mark.parametrize(
    ('policy', 'says'),
    [
        (dict(train='increments', heads=['head']), r"no key \['heads'\]; it takes \['also', 'train'\]"),
        (dict(trian='increments'), r"no key \['trian'\]"),
        ('increments', r"policy is a dict such as dict\(train='increments'"),
        (dict(train='increment'), "train must be 'increments'"),
    ],
    ids=str,
)
def test_a_slip_in_the_policy_is_no_policy_of_another_project(policy, says):
    model = dict(backbone=dict(type='ScaleNetSwin'))  # what `scalenet train` runs whatever the runner's type
    for ours in (dict(runner_type='ScaleNetRunner'), dict(model=model)):
        with pytest.raises(ValueError, match=says):
            complete_config(Config(dict(optim_wrapper=dict(type='OptimWrapper'), policy=policy, **ours)))


def test_a_policy_that_was_taken_away_is_missed_before_anything_is_built(tmp_path):
    with pytest.raises(SystemExit, match=r"no policy, though.*policy = dict\(train='increments'\)"):
        child(tmp_path, 'policy = None\n')


def test_a_plain_runner_refuses_a_config_whose_policy_it_would_ignore():
    cfg = Config.fromfile(CONFIGS / 'demo/scalenet_deit_digits.py')
    with pytest.raises(ValueError, match=r'RUNNERS.build\(cfg\), not with Runner.from_cfg'):
        build_optim_wrapper(torch.nn.Linear(2, 2), cfg.optim_wrapper)


# ---- a run


HOOKS = "custom_hooks = [dict(type='EMAHook', momentum=2e-4)]\n"


def test_hooks_of_a_child_add_to_ours_and_a_frozen_layer_must_still_come_from_the_file(data, tmp_path):
    """EMA as mmengine's guide writes it: the list replaced the base's, and the check of frozen layers was gone."""
    demo = CONFIGS / 'demo'
    source = Config.fromfile(demo / 'deit_digits.py')
    source.model.head.num_classes = 10
    torch.save(dict(state_dict=build_model(source).state_dict()), tmp_path / 'source.pth')
    root = data['imagenet']
    cfg = child(tmp_path, f"{HOOKS}load_from = '{tmp_path}/source.pth'\n", demo / 'scalenet_deit_digits.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
    cfg.work_dir = str(tmp_path / 'run')
    runner = RUNNERS.build(cfg)
    assert type(runner) is ScaleNetRunner
    names = [type(hook).__name__ for hook in runner.hooks]
    assert {'EMAHook', 'AnyDialectHook', 'ReseedHook'} <= set(names)
    with pytest.raises(CheckpointError, match=r"add 'head' to policy.also"):
        runner.train()
    assert 'custom_hooks' in cfg and len(cfg.custom_hooks) == 1, 'the config itself stays as it was written'


@pytest.mark.parametrize('randomness', [dict(seed=3), dict(seed=3, diff_rank_seed=True), dict(diff_rank_seed=True)])
def test_samples_are_seeded_whatever_the_config_says_of_randomness(randomness):
    """With diff_rank_seed mmengine hands a sampler no seed; all processes need one order."""
    from toy_run import toy_config

    cfg = toy_config('nowhere')
    cfg.randomness = randomness
    cfg = complete_config(cfg)
    loader = Runner.build_dataloader(cfg.train_dataloader, 11, randomness.get('diff_rank_seed', False))
    assert loader.sampler.seed == loader.sampler.inner.seed == cfg.randomness.seed == randomness.get('seed', 0)


def test_the_runner_of_a_foreign_config_is_ours_unless_it_names_another(data, tmp_path):
    cfg = Config.fromfile(CONFIGS / 'demo/deit_digits.py')
    cfg.pop('runner_type')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data['imagenet'])
    cfg.work_dir, cfg.experiment_name = str(tmp_path), 'foreign'
    assert type(build_runner(cfg)) is ScaleNetRunner
    cfg.runner_type, cfg.experiment_name = 'Runner', 'named'
    assert type(build_runner(cfg)) is Runner


@pytest.mark.parametrize(
    ('line', 'near'),
    [
        ('trian_cfg = dict(max_epochs=1)', 'train_cfg'),
        ('modle = dict(backbone=dict(img_size=64))', 'model'),
        ('optim_wraper = dict(accumulative_counts=2)', 'optim_wrapper'),
        ('custom_hook = []', 'custom_hooks'),
        ('_trian_cfg = dict(max_epochs=1)', None),
        ('train_loader = dict(batch_size=3)\ntrain_dataloader = dict(**train_loader)', None),
        ("birds = ['robin']", None),
    ],
)
def test_a_top_level_key_that_nothing_reads_and_that_is_a_slip_is_refused_with_the_nearest(line, near, tmp_path):
    path = tmp_path / 'child.py'
    path.write_text(f'_base_ = {str(CONFIGS / "demo" / "deit_digits.py")!r}\n{line}\n')
    if near is None:
        load_config(str(path))
        return
    with pytest.raises(SystemExit) as e:
        load_config(str(path))
    wrong = line.partition(' ')[0]
    assert str(e.value).startswith(
        f'{path}: nothing reads a top-level {wrong!r}, and {near!r} is near. Write {near!r};'
    )


@pytest.mark.parametrize(
    ('option', 'near'),
    [
        ('train_cfg.max_epoch', 'max_epochs'),
        ('model.backbone.ptach_size', 'patch_size'),
        ('default_hooks.param_scheduller.interval', 'param_scheduler'),
        ('model.backbone.frozen_stages', None),
        ('optim_wrapper.paramwise_cfg.custom_keys.norm3.lr_mult', None),
        ('train_dataloader.dataset.pipeline.0.to_float32', None),
    ],
)
def test_an_option_that_the_config_has_not_and_that_is_a_slip_of_what_stands_beside_it_is_refused(option, near):
    digits, options = str(CONFIGS / 'demo' / 'scalenet_deit_digits.py'), {option: 1}
    if near is None:
        options['optim_wrapper.paramwise_cfg.custom_keys'] = dict(norm1={})
        load_config(digits, options=options)
        return
    with pytest.raises(SystemExit, match=f'^--cfg-options {option}=1: .* of .*{digits} has no .* and {near!r} is near'):
        load_config(digits, options=options)


def test_an_option_that_its_class_takes_passes_whatever_it_resembles():
    options = {'model.decode_head.ignore_index': 0, 'model.auxiliary_head.out_channels': 1}
    load_config(str(CONFIGS / 'upernet_scalenet_swin_t_40k.py'), options=options)


@pytest.mark.parametrize(
    ('option', 'told'),
    [
        ('optimizer.lr', 'Write optim_wrapper.optimizer.lr.'),
        ('data.samples_per_gpu', 'Write train_dataloader.batch_size.'),
        ('data.train.pipeline.0.to_float32', 'Write train_dataloader.dataset.pipeline.0.to_float32.'),
        ('runner.max_epochs', 'Write train_cfg.max_epochs.'),
        ('epochs', 'Write train_cfg.max_epochs.'),
        ('log_config.interval', 'Write default_hooks.logger.interval.'),
        ('checkpoint_config.interval', 'Write default_hooks.checkpoint.interval.'),
        ('seed', 'Write randomness.seed.'),
        ('fp16', 'Write optim_wrapper.type=AmpOptimWrapper or --amp.'),
        ('gpu_ids', 'Name a key of the config'),
        ('my_own.key', 'Name a key of the config'),
        ('param_scheduler.3.end', 'param_scheduler of .* is a list of 2; its entries are 0 to 1.'),
        ('param_scheduler.end', 'param_scheduler of .* is a list of 2; its entries are 0 to 1.'),
        ('param_scheduler.0.start_facter', "has no 'start_facter', and 'start_factor' is near"),
        ('train_dataloader.dataset.pipeline.0.backend_arg', 'LoadImageFromFile takes no .* .near are: backend_args'),
        ('param_scheduler.1.etta_min', "has no 'etta_min', and 'eta_min' is near"),
        ('optim_wrapper.accumulate_count', 'OptimWrapper takes no .* .near are: accumulative_counts'),
        ('auto_scale_lr.enabled', "has no 'enabled', and 'enable' is near"),
        ('strategy.type', None),
        ('randomness.deterministic', None),
        ('param_scheduler.1.eta_min', None),
        ('default_hooks.my_own', None),
    ],
)
def test_an_option_that_nothing_reads_is_refused_with_where_it_is_meant_to_stand(option, told):
    config, options = str(CONFIGS / 'scalenet_deit_t_100e.py'), {option: True}
    if told is None:
        load_config(config, options=options)
        return
    with pytest.raises(SystemExit, match=rf'{re.escape(config)}.*{told}' if 'takes no' in told else told):
        load_config(config, options=options)


VARIABLES = """
conv_cfg = dict(type='ConvWS')
train_pipeline_stage2 = [dict(type='A'), dict(type='B')]
data_root_07 = 'data/07/'
model = dict(type='X', neck=dict(conv_cfg=conv_cfg))
custom_hooks = [dict(type='Switch', pipeline=train_pipeline_stage2)]
train_dataloader = dict(dataset=dict(type='Y', data_root=data_root_07))
max_epochs = 3
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs)
"""


def test_a_config_as_a_run_wrote_it_has_variables_and_a_slip_beside_them_is_one(tmp_path):
    (tmp_path / 'own.py').write_text(VARIABLES)
    Config.fromfile(tmp_path / 'own.py').dump(tmp_path / 'written.py')
    refuse_slips(Config.fromfile(tmp_path / 'written.py'), 'written.py', {})
    for slip in ('trian_cfg = dict(max_epochs=4)', "work_dri = 'data/'", 'resum = True'):
        (tmp_path / 'slip.py').write_text(f"_base_ = ['written.py']\n{slip}\n")
        with pytest.raises(SystemExit, match=f'slip.py: nothing reads a top-level {slip.split()[0]!r}'):
            refuse_slips(Config.fromfile(tmp_path / 'slip.py'), 'slip.py', {})


def test_an_option_that_is_a_variable_of_the_config_alone_is_refused_with_where_it_is_read(tmp_path):
    (tmp_path / 'own.py').write_text(VARIABLES)
    cfg = Config.fromfile(tmp_path / 'own.py')
    with pytest.raises(SystemExit, match=r"reads a top-level 'max_epochs'. Write train_cfg.max_epochs"):
        refuse_slips(cfg, 'own.py', {'max_epochs': 12})
    refuse_slips(cfg, 'own.py', {'train_cfg.max_epochs': 12, 'conv_cfg.type': 'Conv2d'})


@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet', 'mmseg'])
def test_no_config_of_a_library_has_a_key_that_counts_as_a_slip(library):
    folder = Path(importlib.import_module(library).__file__).parent / '.mim' / 'configs'
    files = [path.read_text() for path in sorted(folder.rglob('*.py'))]
    assert len(files) > 300
    for text in files:
        keys = {t.id for n in ast.parse(text).body if isinstance(n, ast.Assign) for t in n.targets if hasattr(t, 'id')}
        refuse_slips(Config(dict.fromkeys(keys - {'_base_'}), cfg_text=text), library, {})
