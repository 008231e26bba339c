"""The detection and segmentation configs: the hosts' released settings, scaled; built, loaded and trained."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import perturb
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn
from torch.nn import functional as F

import scalenet_mm  # noqa: F401
from scalenet_mm.backbones import SimpleFeaturePyramid
from scalenet_mm.core.flops import meta_parameters
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.ops import set_ops
from scalenet_mm.runner.config import build_runner, complete_config, trained_by
from scalenet_mm.runner.resume import SeededIndex

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
COCO_1X = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
DETECTOR = 'mmdet::swin/mask-rcnn_swin-{}-p4-w7_fpn_amp-ms-crop-3x_coco.py'
SEGMENTOR = 'mmseg::swin/swin-{}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py'
BOX_LAYERS = ['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg']
LAST_CONVS = ['decode_head.conv_seg', 'auxiliary_head.conv_seg']
# leaf -> (config that trained the checkpoint it starts from, depths after scaling, what is trained besides)
SWIN = {
    'mask_rcnn_scalenet_swin_t_1x.py': (DETECTOR.format('t'), [2, 2, 6, 4], BOX_LAYERS),
    'mask_rcnn_scalenet_swin_s_1x.py': (DETECTOR.format('s'), [2, 2, 18, 4], BOX_LAYERS),
    'mask_rcnn_scalenet_swin_t_all_stages_1x.py': (DETECTOR.format('t'), [4, 4, 12, 4], BOX_LAYERS),
    'mask_rcnn_scalenet_swin_s_all_stages_1x.py': (DETECTOR.format('s'), [4, 4, 36, 4], BOX_LAYERS),
    'upernet_scalenet_swin_t_40k.py': (SEGMENTOR.format('tiny'), [2, 2, 6, 4], LAST_CONVS),
    'upernet_scalenet_swin_s_40k.py': (SEGMENTOR.format('small'), [2, 2, 18, 4], LAST_CONVS),
    'upernet_scalenet_swin_t_all_stages_40k.py': (SEGMENTOR.format('tiny'), [4, 4, 12, 4], LAST_CONVS),
}
DEIT = {
    'mask_rcnn_scalenet_deit_b_1x.py': ['neck', 'rpn_head', 'roi_head'],
    'upernet_scalenet_deit_b_40k.py': ['neck', 'decode_head', 'auxiliary_head'],
}
LEAVES = [*SWIN, *DEIT]
FAST = ['mask_rcnn_scalenet_swin_t_1x.py', 'upernet_scalenet_swin_t_all_stages_40k.py']


def is_det(name: str) -> bool:
    return name.startswith('mask_rcnn')


def stock(name: str, folder: Path) -> Config:
    """A config of an installed package."""
    (folder / 'stock.py').write_text(f'_base_ = {name!r}')
    return Config.fromfile(folder / 'stock.py')


def build(cfg: Config, meta: bool = True) -> nn.Module:
    init_default_scope(cfg.default_scope)
    if not meta:
        return MODELS.build(cfg.model)
    with meta_parameters():
        return MODELS.build(cfg.model)


def plain(value):
    """Without the marks that inheritance from another package leaves."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != '_scope_'}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def differences(a, b, path: str = '') -> set[str]:
    """Paths where two configs differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return set() if a == b else {path}
    absent = object()
    return set().union(
        *(differences(a.get(k, absent), b.get(k, absent), f'{path}.{k}'.lstrip('.')) for k in a.keys() | b.keys())
    )


def test_no_dense_config_is_untested():
    found = {p.name for p in CONFIGS.glob('*.py') if not p.name.startswith('scalenet_')}
    assert found == set(LEAVES)


@pytest.mark.parametrize('name', LEAVES)
def test_leaf_configs_are_short_and_begin_with_their_command(name):
    lines = (CONFIGS / name).read_text().splitlines()
    assert len(lines) <= 50 and lines[0] == f'# python tools/train.py configs/{name}'


# --- settings


# What every leaf changes of the framework's config, and nothing else.
OURS = {
    'custom_imports',
    'runner_type',
    'randomness',
    'policy',
    'optim_wrapper.constructor',
    'optim_wrapper.paramwise_cfg.policy',
    'load_from',
    'default_hooks.checkpoint.max_keep_ckpts',
    'default_hooks.checkpoint.save_best',
    'model.backbone.type',
    'model.backbone.scale',
    'model.backbone.init_cfg',
}
FOR_40K = {
    'param_scheduler',
    'train_cfg.max_iters',
    'train_cfg.val_interval',
    'default_hooks.checkpoint.interval',
    'auto_scale_lr',
}


@pytest.mark.parametrize('name', SWIN)
def test_a_leaf_is_the_frameworks_config_but_for_a_written_set_of_keys(name, tmp_path):
    pretrained, *_ = SWIN[name]
    host = stock(COCO_1X if is_det(name) else pretrained, tmp_path)
    leaf = Config.fromfile(CONFIGS / name)
    before, after = plain(host._cfg_dict.to_dict()), plain(leaf._cfg_dict.to_dict())
    size = set()
    if (
        'swin_s' in name
    ):  # compared with the T config of 12 epochs; a variable that mmseg's own S config sets and we need not
        size = {'model.backbone.depths'} if is_det(name) else {'checkpoint_file'}
    assert differences(before, after) == OURS | size | (set() if is_det(name) else FOR_40K)


@pytest.mark.parametrize('name', LEAVES)
def test_the_schedule_is_the_papers(name):
    """Sec. IV-E1: 1x, 12 epochs. Sec. IV-E2: 40K steps. Both frameworks train 8 x 2 images."""
    cfg = Config.fromfile(CONFIGS / name)
    optimizer = cfg.optim_wrapper.optimizer
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
    if is_det(name):
        assert (cfg.train_cfg.max_epochs, optimizer.type, optimizer.lr) == (12, 'AdamW', 1e-4)
        assert cfg.param_scheduler[1].milestones == [8, 11]
    else:
        assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (40_000, 4_000)
        assert (optimizer.type, optimizer.lr) == ('AdamW', 6e-5)
        warm_up, poly = cfg.param_scheduler
        assert (warm_up.end, poly.begin, poly.end) == (1500, 1500, 40_000)
        crop = next(t for t in cfg.train_pipeline if t.type == 'RandomCrop')
        assert crop.crop_size == cfg.model.data_preprocessor.size == (512, 512)


@pytest.mark.parametrize('name', LEAVES)
def test_weight_decay_spares_what_the_hosts_and_the_papers_recipe_spare(name):
    cfg = Config.fromfile(CONFIGS / name)
    keys = cfg.optim_wrapper.paramwise_cfg.custom_keys
    assert keys['norm'] == keys['relative_position_bias_table'] == dict(decay_mult=0.0)
    if name in DEIT:  # whose norms are called ln1 and ln2
        assert cfg.optim_wrapper.paramwise_cfg.norm_decay_mult == 0.0


def test_the_checkpoints_are_those_of_the_papers_base_rows(tmp_path):
    """mmdet's own metafile gives the addresses and the box AP of Table VIII; mmseg's lists the same paths on a
    mirror.
    """
    import mmdet
    import mmseg
    import yaml

    def models(package):
        (meta,) = (Path(package.__file__).parent / '.mim' / 'configs' / 'swin').glob('metafile.y*ml')
        listed = yaml.safe_load(meta.read_text())
        return {m['Name']: m for m in listed['Models']}

    for size, ap, miou in (('t', 46.0, 44.41), ('s', 48.2, 47.72)):
        cfg = Config.fromfile(CONFIGS / f'mask_rcnn_scalenet_swin_{size}_1x.py')
        entry = models(mmdet)[f'mask-rcnn_swin-{size}-p4-w7_fpn_amp-ms-crop-3x_coco']
        assert cfg.load_from == entry['Weights']
        assert entry['Results'][0]['Metrics']['box AP'] == ap
        cfg = Config.fromfile(CONFIGS / f'upernet_scalenet_swin_{size}_40k.py')
        long = dict(t='tiny', s='small')[size]
        entry = models(mmseg)[f'swin-{long}-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512']
        host, _, path = cfg.load_from.partition('/mmsegmentation/')
        assert entry['Weights'].endswith('/mmsegmentation/' + path)
        assert host == 'https://download.openmmlab.com'
        results = entry['Results']
        metrics = (results[0] if isinstance(results, list) else results)['Metrics']
        assert metrics['mIoU'] == miou


ROOTS = {'scalenet': 'IMAGENET', 'mask': 'COCO', 'upernet': 'ADE'}
DEFAULTS = {'IMAGENET': 'data/imagenet', 'COCO': 'data/coco/', 'ADE': 'data/ade/ADEChallengeData2016'}


def texts(value, path: str = ''):
    """Every string of a config with its path."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, (list, tuple)):
        value = enumerate(value)
    else:
        return [(path, value)] if isinstance(value, str) else []
    return [pair for k, v in value for pair in texts(v, f'{path}.{k}'.lstrip('.'))]


@pytest.mark.parametrize('name', [*LEAVES, 'scalenet_swin_t_100e.py'])
def test_a_dataset_root_is_set_once_and_reaches_every_place(name, monkeypatch):
    ending = '/' if '_t_' in name else ''  # may be there or not
    variable = ROOTS[name.partition('_')[0]]
    for other in ROOTS.values():
        monkeypatch.delenv(f'SCALENET_{other}_ROOT', raising=False)
    before = dict(texts(Config.fromfile(CONFIGS / name)._cfg_dict))
    assert before['data_root'] == DEFAULTS[variable]
    monkeypatch.setenv(f'SCALENET_{variable}_ROOT', f'/my/{variable}{ending}')
    after = dict(texts(Config.fromfile(CONFIGS / name)._cfg_dict))
    bare = DEFAULTS[variable].rstrip('/')
    places = {k for k, v in before.items() if bare in v}
    wanted = {
        'data_root',
        'train_dataloader.dataset.data_root',
        'val_dataloader.dataset.data_root',
        'test_dataloader.dataset.data_root',
    }
    if variable == 'COCO':
        wanted |= {'val_evaluator.ann_file', 'test_evaluator.ann_file'}
    assert places == wanted
    for place in places:
        assert Path(after[place]) == Path(before[place].replace(bare, f'/my/{variable}'))
    assert {k for k in before if before[k] != after[k]} == places


def test_a_users_config_inherits_and_changes_the_root_by_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv('SCALENET_COCO_ROOT', '/my/coco')
    (tmp_path / 'mine.py').write_text("_base_ = 'scalenet_mm::mask_rcnn_scalenet_swin_t_1x.py'")
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.val_evaluator.ann_file == '/my/coco/annotations/instances_val2017.json'
    assert build(cfg).backbone.depths == [2, 2, 6, 4]


@pytest.mark.slow
def test_mmsegs_configs_are_found_by_a_program_that_knows_nothing_of_scalenet(tmp_path):
    """Nobody has imported scalenet_mm when mmengine resolves ``mmseg::``; the first base does."""
    program = (
        'import sys; from mmengine.config import Config; assert "scalenet_mm" not in sys.modules; '
        f'print(Config.fromfile({str(CONFIGS / "upernet_scalenet_swin_t_40k.py")!r}).model.decode_head.type)'
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == 'UPerHead'


# --- models


@pytest.mark.parametrize('name', SWIN)
def test_trained_are_the_backbones_adapters_and_norms_and_the_named_layers_alone(name):
    cfg = Config.fromfile(CONFIGS / name)
    _, depths, also = SWIN[name]
    assert cfg.policy == dict(train='increments', also=also)
    assert trained_by(cfg) == TrainPolicy.from_cfg(cfg.policy)
    model = build(cfg)
    assert model.backbone.depths == depths
    trained = set(TrainPolicy.from_cfg(cfg.policy).apply(model))
    norms = {n for n, m in model.backbone.named_modules() if isinstance(m, nn.LayerNorm)}
    expected = {f'backbone.{n}.{p}' for n in norms for p in ('weight', 'bias')}
    expected |= {f'{layer}.{p}' for layer in also for p in ('weight', 'bias')}
    adapters = {n for n in trained if re.fullmatch(r'backbone\..*\.adapter\.\w+', n)}
    assert trained == expected | adapters and not expected & adapters
    assert len(adapters) == 2 * 2 * sum(depths)  # A and B on fc1 and fc2 of every instance


@pytest.mark.parametrize('name', DEIT)
def test_a_deit_config_trains_its_heads_whole_and_ties_every_layer(name):
    cfg = Config.fromfile(CONFIGS / name)
    assert cfg.policy == dict(train='increments', also=DEIT[name])
    assert trained_by(cfg) == TrainPolicy.from_cfg(cfg.policy)
    model = build(cfg)
    trained = set(TrainPolicy.from_cfg(cfg.policy).apply(model))
    outside = {n for n, _ in model.named_parameters() if not n.startswith('backbone.')}
    inside = [p for n, p in model.backbone.named_parameters() if f'backbone.{n}' in trained]
    assert outside <= trained and sum(p.numel() for p in inside) == 3_024_384  # Sec. IV-A1
    assert model.backbone.layer_maps()['layers'].sources == tuple(i // 2 for i in range(24))


def test_the_segmentor_reads_the_last_use_of_every_third_layer_as_mmseg_does():
    cfg = Config.fromfile(CONFIGS / 'upernet_scalenet_deit_b_40k.py')
    sources = build(cfg).backbone.layer_maps()['layers'].sources
    read = [sources[i] for i in cfg.model.backbone.out_indices]
    assert read == [2, 5, 8, 11]  # mmseg's out_indices for a ViT of 12 layers
    assert all(sources[i + 1 : i + 2] != (sources[i],) for i in cfg.model.backbone.out_indices)


def test_a_simple_feature_pyramid_has_the_parameters_of_its_layers():
    d, c = 768, 256
    deconvolutions = 2 * (4 * d * d // 2 + d // 2) + 4 * (d // 2) * (d // 4) + d // 4
    norm_between = 2 * (d // 2)
    one_by_one = c * (d // 4 + d // 2 + d + d)
    three_by_three, norms = 4 * 9 * c * c, 4 * 2 * 2 * c
    pyramid = SimpleFeaturePyramid(d, c)
    assert sum(p.numel() for p in pyramid.parameters()) == (
        deconvolutions + norm_between + one_by_one + three_by_three + norms
    )


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 1)])
def test_a_simple_feature_pyramid_covers_maps_of_any_size_at_strides_4_to_64(size):
    h, w = size
    pyramid = MODELS.build(dict(type='SimpleFeaturePyramid', in_channels=16, out_channels=8))
    outs = pyramid((None, torch.randn(2, 16, h, w)))
    expected, (height, width) = [(4 * h, 4 * w), (2 * h, 2 * w), (h, w)], (h, w)
    for _ in range(2):
        height, width = (height + 1) // 2, (width + 1) // 2
        expected.append((height, width))
    assert [tuple(o.shape) for o in outs] == [(2, 8, *hw) for hw in expected]
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])


def test_a_pyramid_that_cannot_be_is_refused():
    for bad in (dict(in_channels=18), dict(in_channels=16, num_outs=3)):
        with pytest.raises(ValueError, match='multiple of 4 and num_outs at least 4'):
            SimpleFeaturePyramid(**bad)


# --- data


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Digit scenes under the names of COCO's and ADE20K's first classes, segmentor's images not square."""
    root = tmp_path_factory.mktemp('data')
    made = make_demo_data(root, ['coco', 'ade'], train=4, val=2)
    names = CocoDataset.METAINFO['classes']
    for file in made['coco'].glob('annotations/*.json'):
        listed = json.loads(file.read_text())
        listed['categories'] = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
        file.write_text(json.dumps(listed))
    for file in [*made['ade'].rglob('*.jpg'), *made['ade'].rglob('*.png')]:
        Image.open(file).crop((0, 0, 128, 90)).save(file)
    return made


def test_images_are_grouped_by_aspect_ratio_and_keep_their_seeds(tmp_path, monkeypatch):
    """mmdet's batch sampler looks at ``sampler.dataset``, which is our wrapper."""
    folder = tmp_path / 'annotations'
    folder.mkdir()
    shapes = [(64, 48) if i % 3 else (48, 64) for i in range(12)]
    images = [dict(id=i, file_name=f'{i}.jpg', width=w, height=h) for i, (w, h) in enumerate(shapes)]
    boxes = [dict(id=i + 1, image_id=i, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0) for i in range(12)]
    listed = dict(images=images, annotations=boxes, categories=[dict(id=1, name='person')])
    (folder / 'instances_train2017.json').write_text(json.dumps(listed))
    monkeypatch.setenv('SCALENET_COCO_ROOT', str(tmp_path))
    cfg = complete_config(Config.fromfile(CONFIGS / 'mask_rcnn_scalenet_swin_t_1x.py'))
    init_default_scope('mmdet')
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batches = list(loader.batch_sampler)
    assert sorted(int(i) for b in batches for i in b) == list(range(12))
    assert all(len({shapes[i] for i in batch}) == 1 for batch in batches)
    assert all(isinstance(i, SeededIndex) and i.key for batch in batches for i in batch)


# --- loading and training


def narrow(cfg: dict) -> None:
    """Turns the heads' 256 and 512 channels into 32."""
    for key, value in cfg.items():
        if isinstance(value, dict):
            narrow(value)
        elif key.endswith('channels') and value in (256, 512, 1024):
            cfg[key] = 32


def shrink(cfg: Config) -> Config:
    """The same network, narrow, with few proposals."""
    model, dims = cfg.model, [16, 32, 64, 128]
    narrow(model)
    if 'DeiT' in model.backbone.type:
        arch = dict(embed_dims=32, num_layers=12, num_heads=2, feedforward_channels=64)
        model.backbone.update(arch=arch, img_size=64)
        dims = [32] * 4
    else:
        model.backbone.update(embed_dims=16, num_heads=[1, 1, 2, 4])
    if 'roi_head' in model:
        model.neck.in_channels = 32 if 'DeiT' in model.backbone.type else dims
        model.roi_head.mask_head.num_convs = 1
        for part in (model.train_cfg.rpn_proposal, model.test_cfg.rpn):
            part.update(nms_pre=50, max_per_img=20)
        model.train_cfg.rcnn.sampler.num = 16
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
        return cfg
    if 'neck' in model:
        model.neck.update(in_channels=dims, out_channels=32)
    model.decode_head.in_channels, model.auxiliary_head.in_channels = dims, dims[2]
    return cfg


def small_images(cfg: Config, work_dir: Path) -> Config:
    """Two iterations on images of about 96 pixels, without validation and checkpoints."""
    cfg.work_dir, cfg.default_hooks.checkpoint = str(work_dir), None
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False)
    train = cfg.train_dataloader.dataset.pipeline
    for transform in [*train, *cfg.val_dataloader.dataset.pipeline]:
        if 'Resize' in transform.type:
            transform.scale = (160, 96)
        if transform.type == 'RandomCrop':
            transform.crop_size = (64, 64)
    cfg.train_cfg.update(dict(max_epochs=1) if 'max_epochs' in cfg.train_cfg else dict(max_iters=2), val_interval=100)
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 64)
    return cfg


@pytest.fixture
def roots(data, monkeypatch):
    monkeypatch.setenv('SCALENET_COCO_ROOT', str(data['coco']))
    monkeypatch.setenv('SCALENET_ADE_ROOT', str(data['ade']))
    return data


def source_checkpoint(name: str, tmp_path: Path, change=lambda cfg: cfg) -> tuple[Config, dict]:
    """The stock model with random weights, and its file as the framework writes it."""
    cfg = change(stock(SWIN[name][0], tmp_path))
    cfg.model.backbone.init_cfg = None
    state = perturb(build(cfg, meta=False), std=0.02).state_dict()
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'source.pth')
    return cfg, state


def deep_copy_of(cfg: Config, state: dict, depths: list[int]) -> nn.Module:
    """The framework's own network at the scaled depth, every block a copy of its source's (Eq. 6)."""
    sources = cfg.model.backbone.depths
    cfg.model.backbone.depths = depths
    deep = build(cfg, meta=False)

    def source(key: str) -> str:
        block = re.match(r'(backbone\.stages\.(\d)\.blocks\.)(\d+)(.*)', key)
        if not block:
            return key
        head, stage, index, tail = block.groups()
        return f'{head}{int(index) % sources[int(stage)]}{tail}'

    deep.load_state_dict({k: state[source(k)] for k in deep.state_dict()})
    deep.eval()
    return deep


def outputs(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        if hasattr(model, 'roi_head'):
            features = model.extract_feat(image)
            return [*features, *(t for level in model.rpn_head(features) for t in level)]
        return [model(image, mode='tensor')]


def check_load(name: str, tmp_path: Path, change) -> None:
    source_cfg, state = source_checkpoint(name, tmp_path, change)
    cfg = change(Config.fromfile(CONFIGS / name))
    cfg.load_from, cfg.work_dir = str(tmp_path / 'source.pth'), str(tmp_path / 'run')
    runner = build_runner(cfg)
    runner.load_or_resume()
    runner.model.eval()
    deep = deep_copy_of(source_cfg, state, SWIN[name][1])
    image = torch.randn(1, 3, 96, 128)
    ours = outputs(set_ops(runner.model, 'plain'), image)
    theirs = outputs(deep, image)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    loaded = runner.model.state_dict()
    heads = {k for k in state if not k.startswith('backbone.')}
    assert all(torch.equal(loaded[k], state[k]) for k in heads)
    assert heads == {k for k in loaded if not k.startswith('backbone.')}


@pytest.mark.parametrize('name', FAST)
def test_a_stock_checkpoint_loads_as_the_frameworks_deep_copy(name, roots, tmp_path):
    check_load(name, tmp_path, shrink)


@pytest.mark.slow
@pytest.mark.parametrize('name', SWIN)
def test_a_full_size_stock_checkpoint_loads_as_the_frameworks_deep_copy(name, roots, tmp_path):
    check_load(name, tmp_path, lambda cfg: cfg)


class Before(Hook):
    """Keeps what the model held when training began."""

    def before_train(self, runner) -> None:
        self.state = {k: v.clone() for k, v in runner.model.state_dict().items()}


@pytest.mark.parametrize('name', FAST)
def test_two_iterations_move_every_trained_tensor_and_no_other(name, roots, tmp_path):
    """Running statistics of the frozen heads' BatchNorms stay too."""
    source_checkpoint(name, tmp_path, shrink)
    cfg = small_images(shrink(Config.fromfile(CONFIGS / name)), tmp_path / 'run')
    cfg.load_from, cfg.param_scheduler = str(tmp_path / 'source.pth'), None  # no warm-up
    runner, before = build_runner(cfg), Before()
    runner.register_hook(before)
    runner.train()
    after = runner.model.state_dict()
    moved = {k for k in after if not torch.equal(before.state[k], after[k])}
    assert runner.iter == 2
    assert moved == set(TrainPolicy.from_cfg(cfg.policy).trainable(runner.model))


@pytest.mark.parametrize('name', DEIT)
def test_a_deit_config_takes_images_of_other_sizes_than_its_pretrainings(name, roots, tmp_path):
    """Narrow network; not square, not multiples of the patch; an official DeiT file through init_cfg."""
    import timm

    vit = timm.models.VisionTransformer(img_size=224, embed_dim=32, depth=12, num_heads=2, mlp_ratio=2)
    torch.save(dict(model=perturb(vit).state_dict()), tmp_path / 'deit.pth')
    cfg = small_images(shrink(Config.fromfile(CONFIGS / name)), tmp_path / 'run')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'deit.pth')
    runner = build_runner(cfg)
    runner.model.init_weights()
    source = vit.blocks[11].mlp.fc1.weight
    assert torch.equal(runner.model.backbone.layers[23].ffn.layers[0][0].weight, source)
    runner.model.eval()
    strides = (4, 8, 16, 32, 64)[: 5 if is_det(name) else 4]
    for height, width in ((64, 96), (160, 32)):
        with torch.no_grad():
            maps = runner.model.extract_feat(torch.randn(1, 3, height, width))
        assert [tuple(m.shape[2:]) for m in maps] == [(-(-height // s), -(-width // s)) for s in strides]
    runner.train()
    assert runner.iter == 2
    wanted = 'coco/segm_mAP' if is_det(name) else 'mIoU'
    assert wanted in runner.val_loop.run()


def test_an_image_of_any_size_is_segmented_on_whole_patches_and_cut_back():
    """Stretching the logits of the patch grid over an image that it exceeds would shift every pixel."""
    cfg = shrink(Config.fromfile(CONFIGS / 'upernet_scalenet_deit_b_40k.py'))
    model = build(cfg, meta=False)
    model.eval()
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    sample = SegDataSample(metainfo=dict(ori_shape=(90, 130), img_shape=(90, 130)))
    with torch.no_grad():
        (result,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
        mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
        padded = F.pad((image.flip(0).float() - mean) / std, (0, 30, 0, 6))
        logits = model(padded[None], mode='tensor')
    assert logits.shape[2:] == (24, 40)
    whole = F.interpolate(logits, size=(96, 160), mode='bilinear', align_corners=False)
    torch.testing.assert_close(result.seg_logits.data, whole[0, :, :90, :130])


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in LEAVES if 'all_stages' not in name])
def test_a_leaf_trains_two_iterations_at_full_size_by_its_command(name, roots, tmp_path):
    """The command of its first line; only the images are small."""
    if name in SWIN:
        _, state = source_checkpoint(name, tmp_path)
        options = [f'load_from={tmp_path / "source.pth"}']
    else:
        import timm

        vit = timm.create_model('deit_base_patch16_224')
        torch.save(dict(model=vit.state_dict()), tmp_path / 'source.pth')
        options = [f'model.backbone.init_cfg.checkpoint={tmp_path / "source.pth"}']
    for part in ('train', 'val', 'test'):
        options += [f'{part}_dataloader.num_workers=0', f'{part}_dataloader.persistent_workers=False']
        inner = '.dataset' if part == 'train' else ''
        at = 2 if part == 'train' else 1
        options += [f'{part}_dataloader.dataset{inner}.pipeline.{at}.scale=(160,96)']
    options += ['default_hooks.logger.interval=1']
    if is_det(name):
        options += ['train_cfg.max_epochs=1', 'model.test_cfg.rcnn.score_thr=0']
        options += ['model.test_cfg.rcnn.max_per_img=5']
    else:
        options += ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
        options += ['default_hooks.checkpoint.interval=2']
        options += ['train_dataloader.dataset.pipeline.3.crop_size=(64,64)']
        options += ['model.data_preprocessor.size=(64,64)']
    command = [sys.executable, 'tools/train.py', f'configs/{name}', '--work-dir', tmp_path / 'run']
    done = subprocess.run(
        [*map(str, command), '--cfg-options', *options],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env=dict(os.environ),
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert 'What is trained:' in output and ('bbox_mAP' in output or 'mIoU' in output)
    file = tmp_path / 'run' / ('epoch_1.pth' if is_det(name) else 'iter_2.pth')
    saved = torch.load(file, weights_only=False)['state_dict']
    assert any(v.any() for k, v in saved.items() if k.endswith('.adapter.up'))
    if name in SWIN:
        trained = tuple(f'{layer}.' for layer in SWIN[name][2])
        frozen = {k for k in state if not k.startswith(('backbone.', *trained))}
        assert all(torch.equal(saved[k], state[k]) for k in frozen)
    shutil.rmtree(tmp_path / 'run')
