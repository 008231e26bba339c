"""The hosts' own tools, models and inferencers on our backbones: real processes, in a folder that is no checkout of
ours.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import perturb
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import DATA_SAMPLERS, DATASETS, MODELS, init_default_scope
from PIL import Image

from scalenet_mm.commands import run
from scalenet_mm.core.flops import count_flops
from scalenet_mm.core.roles import count, total
from scalenet_mm.engine import ScaleNetOptimWrapperConstructor
from scalenet_mm.experiments.data import make_demo_data

CONFIGS = Path(__file__).parents[1] / 'configs'
# The settings by which the tests make stock configs small: a narrow Swin of six layers, images of 128 x 128.
SIZE = (128, 128)
DEPTHS, DIMS = [1, 1, 2, 2], [16, 32, 64, 128]
SWIN = {'model.backbone.embed_dims': DIMS[0], 'model.backbone.depths': DEPTHS, 'model.backbone.num_heads': [1, 2, 4, 8]}
FROM_SCRATCH = {'model.backbone.init_cfg': None}
LOADERS = {
    f'{split}_dataloader.{key}': value
    for split in ('train', 'val', 'test')
    for key, value in (('num_workers', 0), ('persistent_workers', False))
}
TEST_DATA = {f'{split}_dataloader.dataset.indices': 2 for split in ('val', 'test')}
DATA = {**LOADERS, **TEST_DATA, 'default_hooks.logger.interval': 1}
TEST_SIZE = {f'{split}_dataloader.dataset.pipeline.1.scale': SIZE for split in ('val', 'test')}
ONE_EPOCH = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.indices': 4}  # 2 batches of 2
TWO_ITERATIONS = {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 2}
COCO = {**DATA, **TEST_SIZE, **ONE_EPOCH, 'train_dataloader.dataset.pipeline.2.scale': SIZE}
FEW_BOXES = {
    'model.train_cfg.rpn_proposal.max_per_img': 20,
    'model.test_cfg.rpn.max_per_img': 20,
    'model.test_cfg.rcnn.max_per_img': 20,
    'model.test_cfg.rcnn.score_thr': 0.0,  # of untrained models, or there is nothing to evaluate
}
UPERNET = {
    'model.data_preprocessor.size': SIZE,
    'model.decode_head.in_channels': DIMS,
    'model.decode_head.channels': 32,
    'model.decode_head.norm_cfg.type': 'BN',  # SyncBN is for GPUs
    'model.auxiliary_head.in_channels': DIMS[2],
    'model.auxiliary_head.channels': 32,
    'model.auxiliary_head.norm_cfg.type': 'BN',
}
ADE = {
    **DATA,
    **TWO_ITERATIONS,
    **{f'{split}_dataloader.dataset.pipeline.1.scale': SIZE for split in ('val', 'test')},
    'train_dataloader.dataset.pipeline.2.scale': SIZE,
    'train_dataloader.dataset.pipeline.3.crop_size': SIZE,
}
DEFORMABLE = 'pixel_decoder.encoder.num_layers'
TYPE = "dict(type='ScaleNetSwin')"


class Swap(NamedTuple):
    """A stock config in which the backbone's type is replaced, and how the test makes it small."""

    package: str
    base: str
    options: dict
    backbone: str = TYPE
    rest: str = ''
    imports: str = "'scalenet_mm'"
    checkpoint: str = 'epoch_1.pth'

    def config(self) -> str:
        return (
            f"_base_ = './{self.package}/{self.base}'\n"
            f'custom_imports = dict(imports=[{self.imports}])\n'
            f'model = dict(backbone={self.backbone})\n{self.rest}'
        )


NECK = {'model.neck.in_channels': DIMS}
MASK_RCNN = Swap(
    'mmdet',
    'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    {**SWIN, **COCO, **NECK, **FEW_BOXES, 'model.roi_head.bbox_head.fc_out_channels': 64},
)
UPERNET_SWIN = Swap(
    'mmseg',
    'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
    {**SWIN, **ADE, **UPERNET},
    checkpoint='iter_2.pth',
)
SWAPS = {
    'Cascade R-CNN': Swap(
        'mmdet',
        'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
        {**SWIN, **COCO, **NECK, **FEW_BOXES},
        backbone="dict(_delete_=True, type='ScaleNetSwin', embed_dims=96, "
        'depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])',
    ),
    'RetinaNet': Swap(
        'mmdet',
        'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
        {**SWIN, **COCO, **FROM_SCRATCH, 'model.neck.in_channels': DIMS[1:], 'model.test_cfg.score_thr': 0.0},
    ),
    'Mask2Former': Swap(
        'mmdet',
        'mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py',
        {
            **SWIN,
            **DATA,
            **TEST_SIZE,
            **TWO_ITERATIONS,
            **FROM_SCRATCH,
            'train_cfg.dynamic_intervals': [(1, 2)],
            'train_dataloader.dataset.pipeline.3.scale': SIZE,
            'train_dataloader.dataset.pipeline.4.crop_size': SIZE,
            'model.data_preprocessor.batch_augments.0.size': SIZE,
            'model.panoptic_head.in_channels': DIMS,
            'model.panoptic_head.num_queries': 8,
            f'model.panoptic_head.{DEFORMABLE}': 1,
            'model.panoptic_head.transformer_decoder.num_layers': 2,
            'model.train_cfg.num_points': 64,
        },
        checkpoint='iter_2.pth',
    ),
    'Mask2Former of mmseg': Swap(
        'mmseg',
        'mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py',
        {
            **SWIN,
            **DATA,
            **TEST_SIZE,
            **TWO_ITERATIONS,
            **FROM_SCRATCH,
            'train_dataloader.dataset.pipeline.2.scales': [128],
            'train_dataloader.dataset.pipeline.3.crop_size': SIZE,
            'model.data_preprocessor.size': SIZE,
            'model.decode_head.in_channels': DIMS,
            'model.decode_head.num_queries': 8,
            f'model.decode_head.{DEFORMABLE}': 1,
            'model.decode_head.transformer_decoder.num_layers': 2,
            'model.decode_head.train_cfg.num_points': 64,
        },
        imports="'scalenet_mm', 'mmdet.models'",  # the stock config imports the latter
        checkpoint='iter_2.pth',
    ),
}


def host(package: str) -> Path:
    """What a package installs for its users: its own `tools` and `configs`."""
    return Path(importlib.util.find_spec(package).origin).parent / '.mim'


def python(cwd: Path, *command, fails: bool = False, timeout: int = 900) -> str:
    """Runs Python in `cwd` on one thread and without a display; returns all that it printed."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert (done.returncode != 0) == fails, done.stdout[-4000:]
    return done.stdout


def as_arguments(options: dict) -> list[str]:
    return ['--cfg-options', *(f'{k}={v}'.replace(' ', '') for k, v in options.items())]


@pytest.fixture(scope='session')
def checkout(tmp_path_factory):
    """A stock checkout as its users have it: configs of mmdet and mmseg, and data where those look for it."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('stock')
    made = make_demo_data(root / 'made', ['coco', 'ade'], train=8, val=4)
    (root / 'data' / 'ade').mkdir(parents=True)
    made['coco'].rename(root / 'data' / 'coco')
    made['ade'].rename(root / 'data' / 'ade' / 'ADEChallengeData2016')
    for path in (root / 'data' / 'coco' / 'annotations').glob('*.json'):
        names = enumerate(CocoDataset.METAINFO['classes'], start=1)  # digit 0 is a person
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=i, name=name) for i, name in names]
        path.write_text(json.dumps(content))
    for package in ('mmdet', 'mmseg'):
        (root / package).symlink_to(host(package) / 'configs')
    return root


def write(checkout: Path, tmp_path: Path, text: str) -> Path:
    """A user's config in the checkout; tests do not see each other's."""
    path = checkout / f'{tmp_path.name}.py'
    path.write_text(text)
    return path


def stock_model(path: Path, options: dict, package: str, part: str = 'model') -> torch.nn.Module:
    """The host's own model of a swapped config, with weights that are nowhere trivial."""
    init_default_scope(package)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({**options, **FROM_SCRATCH})
    cfg.model.backbone.type = f'{package}.SwinTransformer'
    return perturb(MODELS.build(cfg.model if part == 'model' else cfg.model[part]), std=0.02)


def trained(output: str, work: Path, swap: Swap) -> dict:
    """The checkpoint of a run that made two iterations with finite losses and validated."""
    losses = re.findall(r'\(train\).*2/2\].* loss: (\S+)', output)
    assert len(losses) == 1 and 0 < float(losses[0]) < 1e4, output[-3000:]
    assert re.search(r'\(val\) .*\[2/2\] .*(bbox_mAP|mIoU): \d', output), output[-3000:]
    return torch.load(work / swap.checkpoint, weights_only=False)['state_dict']


def sizes(state_dict: dict, prefix: str = '') -> int:
    return sum(
        t.numel() for k, t in state_dict.items() if k.startswith(prefix) and not k.endswith('relative_position_index')
    )


# Two more layers in the last stage, four norm tensors each, and two bias-free adapters of rank 16 in each of all
# layers.
INCREMENTS = 2 * 4 * DIMS[3] + sum(
    layers * 2 * 16 * (dims + 4 * dims) for layers, dims in zip([*DEPTHS[:3], 2 * DEPTHS[3]], DIMS, strict=True)
)


def run_swap(checkout: Path, tmp_path: Path, swap: Swap, extra: dict, config=None) -> dict:
    """Trains and tests a swapped config by its package's own tools.

    Returns:
        The checkpoint's state dict.
    """
    config = config or write(checkout, tmp_path, swap.config())
    options = as_arguments({**swap.options, **extra})
    tools, work = host(swap.package) / 'tools', tmp_path / 'run'
    output = python(checkout, tools / 'train.py', config.name, '--work-dir', work, *options)
    state = trained(output, work, swap)
    output = python(checkout, tools / 'test.py', config.name, work / swap.checkpoint, '--work-dir', work, *options)
    assert re.search(r'\(test\) \[2/2\].*(bbox_mAP|mIoU): \d', output), output[-3000:]
    assert 'not match exactly' not in output, 'the checkpoint loads without a complaint'
    return state


def check_a_swap_by_the_type_alone(checkout, tmp_path, swap):
    config = write(checkout, tmp_path, swap.config())
    source = stock_model(config, swap.options, swap.package, 'backbone').state_dict()
    torch.save({'state_dict': source}, tmp_path / 'source.pth')
    pretrained = {'model.backbone.init_cfg.checkpoint': tmp_path / 'source.pth'}
    state = run_swap(checkout, tmp_path, swap, pretrained, config)
    assert sizes(state, 'backbone.') == sizes(source) + INCREMENTS, 'each shared tensor is there once'
    for name, tensor in source.items():  # two iterations at the start of a warm-up move little
        torch.testing.assert_close(state[f'backbone.{name}'], tensor, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_plain_mask_rcnn_config_with_the_type_changed_trains_and_tests_by_mmdets_own_tools(checkout, tmp_path):
    check_a_swap_by_the_type_alone(checkout, tmp_path, MASK_RCNN)


@pytest.mark.slow
def test_a_plain_upernet_config_with_the_type_changed_trains_and_tests_by_mmsegs_own_tools(checkout, tmp_path):
    check_a_swap_by_the_type_alone(checkout, tmp_path, UPERNET_SWIN)


WAYS = {
    'policy named': "policy = dict(train='increments', also=['{head}'])\nrunner_type = 'ScaleNetRunner'\n",
    'constructor named': "optim_wrapper = dict(constructor='ScaleNetOptimWrapperConstructor', "
    "paramwise_cfg=dict(policy=dict(train='increments', also=['{head}'])))\n",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('swap', 'head'),
    [(MASK_RCNN, 'roi_head.bbox_head.fc_cls'), (UPERNET_SWIN, 'decode_head.conv_seg')],
    ids=['Mask R-CNN', 'UPerNet'],
)
@pytest.mark.parametrize('way', WAYS)
def test_only_increments_and_the_listed_head_move(way, swap, head, checkout, tmp_path):
    config = write(checkout, tmp_path, swap._replace(rest=WAYS[way].format(head=head)).config())
    source = stock_model(config, swap.options, swap.package)
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'source.pth')
    options = {**swap.options, **FROM_SCRATCH, 'load_from': tmp_path / 'source.pth'}
    state = run_swap(checkout, tmp_path, swap, options, config)
    moved = {k for k, t in source.state_dict().items() if not torch.equal(t, state[k])}
    assert {k for k in moved if k.startswith(head)} == {f'{head}.weight', f'{head}.bias'}
    others = {k for k in moved if not k.startswith(head)}
    assert others and all(k.startswith('backbone.') and 'norm' in k for k in others), others
    adapters = [t for k, t in state.items() if '.adapter.' in k]
    assert len(adapters) == 8 * 2 * 2 and all(t.any() for t in adapters), 'eight layers learn'


@pytest.mark.slow
@pytest.mark.parametrize('name', SWAPS)
def test_other_models_train_and_test_with_the_backbone_swapped(name, checkout, tmp_path):
    state = run_swap(checkout, tmp_path, SWAPS[name], {})
    adapters = [k for k in state if '.adapter.' in k]
    assert len(adapters) == 8 * 2 * 2


@pytest.mark.slow
def test_a_full_size_mask_rcnn_swin_t_trains_and_tests_with_the_type_changed(checkout, tmp_path):
    full = MASK_RCNN._replace(options={**COCO, **FEW_BOXES, **FROM_SCRATCH})
    state = run_swap(checkout, tmp_path, full, {})
    assert sizes(state) == 48_753_066  # paper.md, section 5: 48.75 M, two layers more in the last stage


# ---- a user's config that inherits ours

ROADS = {
    'a path': "_base_ = '{configs}/{name}'",
    'a relative path': "_base_ = './ours/{name}'",
    'an import in the value of _base_': "_base_ = __import__('scalenet_mm') and 'scalenet_mm::{name}'",
    'the package name': "_base_ = 'scalenet_mm::{name}'",
}
DET, SEG = 'mask_rcnn_scalenet_swin_t_1x.py', 'upernet_scalenet_swin_t_40k.py'
READ = """
import sys
from mmengine.config import Config
cfg = Config.fromfile('mine.py')
print('READ', cfg.model.backbone.type, cfg.mine, cfg.policy.also)
"""


@pytest.mark.parametrize(
    ('road', 'leaf'),
    [
        pytest.param('a path', SEG, marks=pytest.mark.slow),
        pytest.param('an import in the value of _base_', DET, marks=pytest.mark.slow),
        ('the package name', DET),
    ],
)
def test_a_users_config_inherits_ours_in_a_tool_that_knows_nothing_of_us(road, leaf, tmp_path):
    """The bare package name alone needs the wrapper: mmengine resolves it before it reads `custom_imports`."""
    (tmp_path / 'mine.py').write_text(f'{based(road, leaf)}mine = 1\n')
    (tmp_path / 'read.py').write_text(READ)
    wrapped = road == 'the package name'
    output = python(tmp_path, 'read.py', fails=wrapped)
    if wrapped:
        assert '_get_package_and_cfg_path' in output, 'refused by mmengine itself'
        output = python(tmp_path, '-m', 'scalenet_mm', 'run', 'read.py')
    assert re.search(r"READ ScaleNetSwin 1 \['\w+", output)


def based(road: str, leaf: str) -> str:
    return ROADS[road].format(configs=CONFIGS, name=leaf) + '\n'


@pytest.mark.slow
@pytest.mark.parametrize('road', ROADS)
@pytest.mark.parametrize('leaf', [DET, SEG])
def test_a_users_config_inheriting_ours_runs_by_the_hosts_own_train(road, leaf, checkout, tmp_path):
    swap = ours(leaf)
    (checkout / 'ours').exists() or (checkout / 'ours').symlink_to(CONFIGS)
    config = write(checkout, tmp_path, based(road, leaf))
    wrapper = ['-m', 'scalenet_mm', 'run'] if road == 'the package name' else []
    arguments = [config.name, '--work-dir', tmp_path / 'run', *as_arguments(swap.options)]
    output = python(checkout, *wrapper, host(swap.package) / 'tools' / 'train.py', *arguments)
    assert 'What is trained:' in output
    assert any('.adapter.' in k for k in trained(output, tmp_path / 'run', swap))


@pytest.mark.slow
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_what_init_writes_trains_by_the_hosts_own_tool_and_on_two_processes(package, checkout, tmp_path):
    swap = {'mmdet': MASK_RCNN, 'mmseg': UPERNET_SWIN}[package]
    stock = checkout / swap.package / swap.base
    cfg = Config.fromfile(stock)
    cfg.merge_from_dict({**swap.options, **FROM_SCRATCH})
    config, written = checkout / f'own_{package}.py', checkout / f'scaled_{package}.py'
    cfg.dump(config)
    source = stock_model(stock, swap.options, package).state_dict()
    torch.save({'state_dict': source}, checkout / 'own.pth')
    init = ['init', config.name, 'own.pth', '-o', written.name, '--rank', '4', '--keep-schedule']
    python(checkout, '-m', 'scalenet_mm', *init)
    output = python(checkout, host(package) / 'tools' / 'train.py', written.name, '--work-dir', tmp_path / 'one')
    assert 'What is trained:' in output
    # Ours, as mmengine's own way to several processes asks for a GPU; as many images a step as one process has
    two = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', CONFIGS.parent / 'tools' / 'train.py']
    more = ['--launcher', 'pytorch', *as_arguments({'train_dataloader.batch_size': 1})]
    python(checkout, *two, written.name, '--work-dir', tmp_path / 'two', *more)
    alone = trained(output, tmp_path / 'one', swap)
    for state in (alone, torch.load(tmp_path / 'two' / swap.checkpoint, weights_only=False)['state_dict']):
        assert state.keys() == alone.keys()
        frozen = [k for k in source if k.startswith('backbone.stages.0') and 'norm' not in k]
        assert frozen and all(torch.equal(state[k], source[k]) for k in frozen)
        moved = [k for k in state if k.endswith('adapter.up')]
        assert moved and all(state[k].any() for k in moved)


def ours(leaf: str) -> Swap:
    """A leaf config of ours, made small."""
    swap = UPERNET_SWIN if 'upernet' in leaf else MASK_RCNN
    return swap._replace(options={**swap.options, 'load_from': None})


def test_the_wrapper_runs_a_script_as_python_would(tmp_path, capsys):
    (tmp_path / 'beside.py').write_text('value = 7\n')
    (tmp_path / 'script.py').write_text(
        "import sys, beside\nprint(__name__, sys.argv[1:], beside.value, 'scalenet_mm' in sys.modules)\nsys.exit(3)\n"
    )
    here = tmp_path / 'elsewhere'
    here.mkdir()
    output = python(here, '-m', 'scalenet_mm', 'run', '../script.py', '--a', 'b', fails=True)
    assert output.splitlines()[-1] == "__main__ ['--a', 'b'] 7 True"
    assert run.main(['no_such.py']) == 2
    assert 'such as tools/train.py, got no_such.py' in capsys.readouterr().err


# ---- the optimizer of stock configs


def grouped(constructor: type, cfg: Config, model: torch.nn.Module) -> dict[str, tuple]:
    """(lr, weight decay) of every parameter by its name."""
    settings = cfg.optim_wrapper.to_dict()
    paramwise = settings.pop('paramwise_cfg')
    if constructor is ScaleNetOptimWrapperConstructor:
        paramwise['policy'] = dict(train='all')
    wrapper = constructor(settings, paramwise)(model)
    found = {id(p): (g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups for p in g['params']}
    return {name: found[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize('constructor', [DefaultOptimWrapperConstructor, ScaleNetOptimWrapperConstructor])
def test_mask2formers_custom_keys_mean_on_every_instance_what_they_mean_on_its_source(constructor, checkout, tmp_path):
    """The stock config names each norm of the unscaled depth; the reference is mmengine's constructor on the stock
    model.
    """
    swap = SWAPS['Mask2Former']
    config = write(checkout, tmp_path, swap.config())
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(swap.options)
    wanted = grouped(DefaultOptimWrapperConstructor, cfg, stock_model(config, swap.options, swap.package))
    got = grouped(constructor, cfg, MODELS.build(cfg.model))
    lr, decay = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay
    new = set(got) - set(wanted)
    assert not set(wanted) - set(got)
    assert {k: got[k] for k in wanted} == wanted
    norms = {k for k in new if '.norm' in k}
    assert len(norms) == 2 * 4 and {got[k] for k in norms} == {(0.1 * lr, 0.0)}
    assert all('.adapter.' in k for k in new - norms)
    assert {got[k] for k in new - norms} == {(0.1 * lr, decay)}, "'backbone' of custom_keys"


def test_frozen_stages_of_a_stock_config_is_refused_with_the_way_out(checkout, tmp_path):
    swap = SWAPS['Mask2Former']
    config = write(checkout, tmp_path, swap.config())
    init_default_scope('mmdet')
    backbone = Config.fromfile(config).model.backbone
    assert backbone.frozen_stages == -1 and backbone.convert_weights and not backbone.with_cp
    backbone.update(init_cfg=None, frozen_stages=2)
    with pytest.raises(ValueError, match='frozen_stages=2 would freeze .*policy = dict'):
        MODELS.build(backbone)


# ---- data


def test_mmdets_aspect_ratio_batches_keep_the_seeds_of_our_sampler(checkout):
    """Wide and tall images never share a batch, and every index still carries the seed of its augmentation."""
    import mmdet.datasets  # noqa: F401

    shapes = [(64, 128), (128, 64)] * 4  # height, width

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(shapes)

        def get_data_info(self, i):
            return dict(height=shapes[i][0], width=shapes[i][1])

    dataset = DATASETS.get('SeededDataset')(Images())
    sampler = DATA_SAMPLERS.build(
        dict(type='SeededSampler', sampler=dict(type='DefaultSampler', shuffle=True)),
        default_args=dict(dataset=dataset, seed=5),
    )
    batches = list(
        DATA_SAMPLERS.build(
            dict(type='mmdet.AspectRatioBatchSampler', batch_size=2), default_args=dict(sampler=sampler)
        )
    )
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert all(len({shapes[i] for i in batch}) == 1 for batch in batches)
    keys = [i.key for batch in batches for i in batch]
    assert len(set(keys)) == 8 and {key[1] for key in keys} == {5}


# ---- inferencers and analysis tools

# leaf -> (what a user writes, what comes out of a model that finds 20 boxes, or one label a pixel)
INFERENCERS = {
    DET: ('from mmdet.apis import DetInferencer as Inferencer', "len(result['predictions'][0]['scores'])", '20'),
    SEG: ('from mmseg.apis import MMSegInferencer as Inferencer', "result['predictions'].shape", '({1}, {0})'),
}
INFER = """
import sys
{imported}
result = Inferencer(sys.argv[1], sys.argv[2], device='cpu')(sys.argv[3], out_dir='{out}')
print('FOUND', {found})
"""


@pytest.mark.slow
@pytest.mark.parametrize('leaf', INFERENCERS)
def test_the_hosts_inferencer_takes_a_config_and_a_checkpoint_of_ours(leaf, checkout, tmp_path):
    """Both as our run wrote them, in a process that imports the host alone."""
    swap, work = ours(leaf), tmp_path / 'run'
    config = write(checkout, tmp_path, based('a path', leaf))
    arguments = [config.name, '--work-dir', work, *as_arguments(swap.options)]
    python(checkout, host(swap.package) / 'tools' / 'train.py', *arguments)
    imported, found, wanted = INFERENCERS[leaf]
    (tmp_path / 'infer.py').write_text(INFER.format(imported=imported, found=found, out=tmp_path / 'drawn'))
    image = next((checkout / 'data' / 'coco' / 'val2017').glob('*.jpg'))
    output = python(tmp_path, 'infer.py', work / config.name, work / swap.checkpoint, image, fails=False)
    size = Image.open(image).size
    assert f'FOUND {wanted.format(*size)}' in output
    assert 'not match exactly' not in output
    (drawn,) = (tmp_path / 'drawn' / 'vis').iterdir()
    assert Image.open(drawn).size == size


def analyse(checkout: Path, tool: str, leaf: str, arguments: list, stock_arguments: list) -> str:
    """Runs a host's analysis tool on a config of ours; skips where it fails on the host's own config as well."""
    swap = ours(leaf)
    script = host(swap.package) / 'tools' / 'analysis_tools' / tool
    try:
        return python(checkout, script, CONFIGS / leaf, *arguments)
    except AssertionError:
        python(checkout, script, Path(swap.package) / swap.base, *stock_arguments, fails=True)
    pytest.skip(f"{swap.package}'s {tool} fails on its own {swap.base} as well")


@pytest.mark.slow
@pytest.mark.parametrize('leaf', [DET, SEG])
def test_the_hosts_get_flops_reads_our_configs_and_differs_by_the_operations_we_leave_out(leaf, checkout):
    """mmengine counts norms (5 an element), pooling and upsampling as well; it too counts a shared tensor once."""
    package = ours(leaf).package
    small = {**LOADERS, **FROM_SCRATCH, 'val_dataloader.dataset.pipeline.1.scale': (224, 224)}
    size = ['--num-images', '1'] if leaf == DET else ['--shape', '224', '224']
    arguments = [*size, *as_arguments(small)]
    output = analyse(checkout, 'get_flops.py', leaf, arguments, arguments)
    flops, params = (
        float(re.search(rf'{what}: ([\d.]+){unit}', output)[1]) for what, unit in (('Flops', 'G'), ('Params', 'M'))
    )
    model = stock_like(CONFIGS / leaf, package)
    assert params == round(total(count(model).values()).params / 1e6, 3)
    if leaf == SEG:  # a detector's second stage depends on what its first one finds
        assert 0 < flops - count_flops(model) / 1e9 < 0.002 * flops


def stock_like(path: Path, package: str) -> torch.nn.Module:
    """The model as `get_flops.py` counts it: without an auxiliary head."""
    init_default_scope(package)
    model = MODELS.build(Config.fromfile(path).model)
    if hasattr(model, 'auxiliary_head'):
        model.auxiliary_head = None
    return revert_sync_batchnorm(model)


@pytest.mark.slow
@pytest.mark.parametrize('leaf', [DET, SEG])
def test_the_hosts_browse_dataset_draws_every_image_of_our_configs(leaf, checkout, tmp_path):
    swap = ours(leaf)
    sizes = {k: v for k, v in swap.options.items() if k.startswith('train_dataloader.dataset.')}
    sizes.pop('train_dataloader.dataset.indices', None)
    saved = ['--not-show', '--output-dir', tmp_path / 'drawn']
    output = analyse(checkout, 'browse_dataset.py', leaf, [*saved, *as_arguments(sizes)], saved)
    assert '8/8' in output
    data = 'coco/train2017' if leaf == DET else 'ade/ADEChallengeData2016/images/training'
    images = {p.name for p in (checkout / 'data' / data).iterdir()}
    assert {p.name for p in (tmp_path / 'drawn').iterdir()} == images and len(images) == 8
