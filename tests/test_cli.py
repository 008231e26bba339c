"""tools/train.py and tools/test.py as a user calls them, and what --dry-run says about the run."""

import json
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from scalenet_mm.checkpoint.delta_file import read_delta
from scalenet_mm.commands import test as evaluate
from scalenet_mm.commands import train
from scalenet_mm.commands.main import main
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.runner.config import draw_predictions, load_config, move_data_root, use_tta, write_deltas
from scalenet_mm.runner.dry_run import FirstImages, estimate

ROOT = Path(__file__).parents[1]
DEMO = ROOT / 'configs' / 'demo'
LOOPS = {
    'epochs': dict(by_epoch=True, max_epochs=3, val_interval=2),
    'iterations': dict(type='IterBasedTrainLoop', max_iters=40, val_interval=10),
}


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    return make_demo_data(folder, ['imagenet'], train=57, val=19)['imagenet']


@pytest.fixture
def config(tmp_path, digits):
    """Writes a small scaled DeiT's config with one of the loops."""

    def write(loop: str = 'epochs', **changes) -> Path:
        cfg = Config.fromfile(DEMO / 'scalenet_deit_digits.py')
        cfg.model.backbone.arch.update(embed_dims=32, num_layers=2, feedforward_channels=64)
        cfg.model.head.in_channels = 32
        cfg.load_from = None
        cfg.train_cfg = LOOPS[loop]
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.update(batch_size=16, num_workers=0, persistent_workers=False)
        if loop == 'iterations':
            cfg.train_dataloader.sampler.type = 'InfiniteSampler'
            cfg.default_hooks.checkpoint.update(by_epoch=False, interval=4)
        move_data_root(cfg, str(digits))
        cfg.merge_from_dict(changes)
        cfg.dump(tmp_path / 'config.py')
        return tmp_path / 'config.py'

    return write


@HOOKS.register_module()
class CountsForTest(Hook):
    """How many iterations were trained and images validated."""

    def before_train(self, runner) -> None:
        self.seen.update(train=0, val=0)

    def after_train_iter(self, *args, **kwargs) -> None:
        self.seen['train'] += 1

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.seen['val'] += len(outputs)

    seen: ClassVar[dict[str, int]] = {}


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1].replace(',', ''))


@pytest.mark.parametrize('loop', LOOPS)
def test_a_dry_run_measures_and_leaves_nothing_behind(loop, config, tmp_path, monkeypatch, capsys):
    (tmp_path / 'temporary').mkdir()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    path = config(
        loop, **{'custom_hooks': [dict(type='CountsForTest')], 'default_hooks.checkpoint.filename_tmpl': 'model_{}.pt'}
    )
    train.main([str(path), '--dry-run', '--work-dir', str(tmp_path / 'w')])
    assert CountsForTest.seen == dict(train=2, val=8)
    dry = capsys.readouterr().out
    assert not (tmp_path / 'w').exists()
    assert not list((tmp_path / 'temporary').iterdir()) and not list((tmp_path / 'here').iterdir())
    # 57 images in batches of 16, the rest dropped: 3 iterations an epoch
    assert number(r'whole run .*: ([\d,]+) iterations on 57 images', dry) == (3 * 3 if loop == 'epochs' else 40)
    assert number(r'evaluations of 19 images: (\d+)', dry) == (2 if loop == 'epochs' else 4)
    assert number(r'evaluation +([\d.e-]+) s', dry) > 0 < number(r'iteration +([\d.e-]+) s', dry)
    # what a real run writes
    short = 'train_cfg.max_epochs=1' if loop == 'epochs' else 'train_cfg.max_iters=4'
    train.main([str(path), '--work-dir', str(tmp_path / 'w'), '--cfg-options', short])
    (saved,) = (tmp_path / 'w').glob('*.pt')
    size = saved.stat().st_size / 2**20
    assert number(r'checkpoint +([\d.,]+) MB', dry) == pytest.approx(size, rel=0.1)
    model = torch.load(saved, weights_only=False)
    kept = {k: v for k, v in model['state_dict'].items() if not k.startswith('data_preprocessor')}
    assert number(r'total +[\d,]+ +([\d,]+)', dry) == sum(v.numel() for v in kept.values())


def test_a_dry_run_fails_as_the_run_would(config, tmp_path):
    path = config(**{'policy.also': ['head.fcc'], 'work_dir': str(tmp_path / 'w')})
    with pytest.raises(ValueError, match='matches none'):
        train.main([str(path), '--dry-run'])
    assert not (tmp_path / 'w').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'layout'), [('mask_rcnn_scalenet_swin_digits', 'coco'), ('upernet_scalenet_swin_digits', 'ade')]
)
def test_a_dry_run_of_a_detector_and_a_segmentor(name, layout, tmp_path, capsys):
    data = make_demo_data(tmp_path, [layout], train=16, val=8)[layout]
    options = ['--cfg-options', f'data_root={data}', 'load_from=None']
    train.main([str(DEMO / f'{name}.py'), '--dry-run', '--work-dir', str(tmp_path / 'w'), *options])
    out = capsys.readouterr().out
    assert 'on 16 images, evaluations of 8 images: 1' in out and not (tmp_path / 'w').exists()


def test_the_schedules_cost_is_counted_from_the_real_data():
    def cfg(train_cfg, **checkpoint):
        return Config(
            dict(
                train_cfg=train_cfg,
                train_dataloader=dict(batch_size=16),
                default_hooks=dict(checkpoint=dict(type='CheckpointHook', **checkpoint)),
            )
        )

    coco = cfg(dict(by_epoch=True, max_epochs=12, val_interval=1), max_keep_ckpts=2, save_best='auto')
    cost = estimate(coco, 117266, 5000, iteration=0.5, image=0.1)
    assert cost.iterations == 12 * 7330, 'mmdet logs 7330 iterations for 117,266 images in 8 x 2'
    assert cost.validations == 12 and cost.checkpoints == 2 + 1 + 1
    assert cost.hours == pytest.approx((12 * 7330 * 0.5 + 12 * 5000 * 0.1) / 3600)
    coco.train_dataloader.num_batch_per_epoch = 50
    assert estimate(coco, 117266, 5000, iteration=0.5, image=0.1).iterations == 12 * 50
    ade = cfg(dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000), by_epoch=False, interval=4000)
    cost = estimate(ade, 20210, 2000, iteration=0.5, image=0.1)
    assert (cost.iterations, cost.validations, cost.checkpoints) == (40000, 10, 10 + 1)
    late = dict(by_epoch=True, max_epochs=300, val_interval=1, val_begin=290)
    assert estimate(cfg(late), 100, 10, 1, 1).validations == 11
    often = dict(by_epoch=True, max_epochs=300, val_interval=10, dynamic_intervals=[(280, 1)])
    assert estimate(cfg(often), 100, 10, 1, 1).validations == _validated(often)
    for begin, every, kept in ((290, 1, 11), (291, 2, 6), (0, 7, 43), (301, 1, 1)):
        assert estimate(cfg(late, save_begin=begin, interval=every), 100, 10, 1, 1).checkpoints == kept + 1


def _validated(train_cfg: dict) -> int:
    """By mmengine's own loop, with epochs of nothing."""
    count, nothing = [], SimpleNamespace(run=lambda: count.append(0), val_begin=1)
    runner = SimpleNamespace(
        call_hook=lambda *a, **k: None, val_loop=nothing, model=SimpleNamespace(train=lambda: None)
    )
    keys = ('max_epochs', 'val_interval', 'dynamic_intervals')
    loop = EpochBasedTrainLoop(runner, DataLoader([]), **{k: train_cfg[k] for k in keys})
    loop.run()
    return len(count)


def test_the_first_images_are_repeated_and_the_whole_length_is_known():
    class Numbers(list):
        metainfo = 'kept'

    data = FirstImages.__new__(FirstImages)
    data.dataset, data.images, data.length = Numbers(range(57)), 8, 20
    assert [data[i] for i in range(len(data))] == [i % 8 for i in range(20)]
    assert data.metainfo == 'kept' and len(data.dataset) == 57


def test_data_root_moves_every_path_below_the_old_folder(tmp_path):
    cfg = load_config(str(DEMO / 'mask_rcnn_swin_digits.py'), options={'data_root': '/new/'})
    assert cfg.train_dataloader.dataset.data_root == '/new/'
    assert cfg.val_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == '/new/'
    assert cfg.val_evaluator.ann_file == '/new/annotations/instances_val2017.json'
    assert cfg.work_dir == 'work_dirs/mask_rcnn_swin_digits'
    with pytest.raises(SystemExit, match='--tta needs'):
        use_tta(cfg)
    named = dict(train_dataloader=dict(dataset=dict(data_root='mine/')), _data=dict(data_root='data/demo/'))
    helper = Config(named)  # of a base config; no loader reads it
    move_data_root(helper, 'z')
    assert helper.train_dataloader.dataset.data_root == 'z/'
    two = Config(dict(a=dict(data_root='x/'), b=[dict(data_root='y'), 'xyz/1']))
    with pytest.raises(SystemExit, match=r"\['x/', 'y'\]"):
        move_data_root(two, 'z')
    two.data_root = 'x'
    move_data_root(two, 'z')
    assert two.a.data_root == 'z/' and two.b == [dict(data_root='y'), 'xyz/1']
    inside = Config(dict(data_root='x/', both=(dict(data_root='x/'), dict(of=('x/1', (1, 2))))))
    move_data_root(inside, 'z')
    assert inside.both == (dict(data_root='z/'), dict(of=('z/1', (1, 2))))


@pytest.mark.parametrize('config', ['upernet_swin_digits', 'mask_rcnn_swin_digits', 'deit_digits'])
def test_a_config_that_draws_predictions_into_a_folder_can_be_written_and_read(config, tmp_path):
    cfg = load_config(str(DEMO / f'{config}.py'))
    draw_predictions(cfg, False, tmp_path / 'shown-1', 0)
    assert isinstance(cfg.visualizer.get('save_dir', ''), str)
    cfg.dump(tmp_path / 'dumped.py')
    assert str(tmp_path / 'shown-1') in Config.fromfile(tmp_path / 'dumped.py').pretty_text


@pytest.mark.parametrize(
    ('config', 'images'),
    [('upernet_swin_digits', 'images/validation'), ('mask_rcnn_swin_digits', 'val2017'), ('deit_digits', 'val')],
)
def test_drawings_do_not_go_where_the_images_of_the_test_are(config, images, tmp_path):
    cfg = load_config(str(DEMO / f'{config}.py'), options=dict(data_root=str(tmp_path)))
    for folder in (tmp_path / images, tmp_path / 'x' / '..' / images / 'drawn'):
        with pytest.raises(SystemExit, match=rf'--show-dir .* lies in {tmp_path / images}, whose images'):
            draw_predictions(cfg, False, folder, 0)
    draw_predictions(cfg, False, tmp_path / 'drawn', 0)


def test_a_work_dir_of_a_config_is_below_the_home_that_it_names(config, monkeypatch):
    monkeypatch.setenv('HOME', '/the/home')
    assert load_config(str(config(work_dir='~/runs/x'))).work_dir == '/the/home/runs/x'


def test_nothing_is_built_when_something_is_missing(config, tmp_path):
    path = config(**{'load_from': 'none.pth'})
    with pytest.raises(SystemExit, match='there is no checkpoint none.pth'):
        train.main([str(path), '--work-dir', str(tmp_path / 'w')])
    assert not (tmp_path / 'w').exists()
    with pytest.raises(FileNotFoundError):
        train.main([str(path), '--work-dir', str(tmp_path / 'w'), '--no-preflight'])
    with pytest.raises(SystemExit, match='model.pretrained: there is no checkpoint none.pth'):
        train.main([str(config()), '--work-dir', str(tmp_path / 'x'), '--cfg-options', 'model.pretrained=none.pth'])


def source_state(path) -> dict:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(Config.fromfile(path).model).state_dict()


@pytest.mark.slow
def test_a_delta_on_its_base_evaluates_to_the_full_checkpoints_numbers(config, tmp_path):
    matrix = [dict(type='Accuracy'), dict(type='ConfusionMatrix')]
    path = config(**{'train_cfg.max_epochs': 1, 'val_evaluator': matrix, 'test_evaluator': matrix})
    base = tmp_path / 'base.pth'
    torch.save(dict(state_dict=source_state(path)), base)
    work = ['--work-dir', str(tmp_path / 'w')]
    train.main([str(path), *work, '--cfg-options', f'load_from={base}', '--tensorboard'])
    assert list((tmp_path / 'w').rglob('events.out.tfevents*'))
    out = [tmp_path / 'full.json', tmp_path / 'delta.json']
    evaluate.main([str(path), str(tmp_path / 'w' / 'epoch_1.pth'), *work, '--out', str(out[0])])
    delta = ['--delta', str(tmp_path / 'w' / 'epoch_1.delta.safetensors')]
    evaluate.main([str(path), str(base), *delta, *work, '--out', str(out[1])])
    full, with_delta = (json.loads(p.read_text()) for p in out)
    assert full and full == with_delta
    assert len(full['confusion_matrix/result']) == 19


def test_deltas_are_written_where_increments_of_something_pretrained_are_trained(config, monkeypatch):
    cfg = Config.fromfile(config(load_from='base.pth'))
    write_deltas(cfg, cfg.load_from)
    write_deltas(cfg, cfg.load_from)
    assert [h.type for h in cfg.custom_hooks].count('DeltaHook') == 1
    of_model = Config.fromfile(config(load_from=None, **{'model.pretrained': 'base.pth'}))
    write_deltas(of_model, None)
    assert 'DeltaHook' in [h.type for h in of_model.custom_hooks]
    with monkeypatch.context() as lacking:
        lacking.setattr('scalenet_mm.runner.config.find_spec', lambda name: None)
        with pytest.raises(SystemExit, match='safetensors is not installed: pip install safetensors'):
            write_deltas(Config.fromfile(config(load_from='base.pth')), 'base.pth')
    for changes in (
        {'load_from': None},
        {'load_from': None, 'model.init_cfg': [dict(type='TruncNormal', layer='Linear', std=0.02)]},
        {'load_from': 'base.pth', 'policy.train': 'all'},
        {'load_from': 'base.pth', 'optim_wrapper.constructor': 'DefaultOptimWrapperConstructor', 'policy': None},
    ):
        cfg = Config.fromfile(config(**changes))
        write_deltas(cfg, cfg.load_from)
        assert 'DeltaHook' not in [h.type for h in cfg.get('custom_hooks', [])]


def test_a_resumed_run_goes_on_with_its_deltas_though_its_base_is_not_named_again(config, tmp_path):
    path, base = config(**{'train_cfg.max_epochs': 1}), tmp_path / 'base.pth'
    torch.save(dict(state_dict=source_state(path)), base)
    work = ['--work-dir', str(tmp_path / 'w'), '--cfg-options']
    train.main([str(path), *work, f'load_from={base}'])
    train.main([str(path), *work, 'train_cfg.max_epochs=2', '--resume'])
    assert read_delta(tmp_path / 'w' / 'epoch_2.delta.safetensors').base == 'base.pth'
    assert not (tmp_path / 'w' / 'epoch_1.delta.safetensors').exists(), 'gone with its checkpoint'


def test_configs_of_the_libraries_are_found_by_their_scope(tmp_path):
    cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert cfg.model.type == 'RetinaNet' and cfg.work_dir == 'work_dirs/retinanet_r50_fpn_1x_coco'
    use_tta(cfg)
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.type == 'RetinaNet'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'
    with pytest.raises(SystemExit, match='There is no config'):
        load_config(str(tmp_path / 'none.py'))


@pytest.mark.parametrize(
    'typed, told',
    [
        (
            "head=dict(type='VisonTransformerClsHead')",
            'VisonTransformerClsHead is not in the mmpretrain::model registry',
        ),
        ('head=dict(num_clases=3)', "unexpected keyword argument 'num_clases'"),
    ],
)
def test_a_slip_in_a_config_is_told_without_a_traceback(typed, told, tmp_path, capsys):
    (tmp_path / 'c.py').write_text(f"_base_ = '{ROOT / 'configs/demo/deit_digits.py'}'\nmodel = dict({typed})\n")
    weights, image = tmp_path / 'm.pth', tmp_path / 'x.png'
    torch.save({'a': torch.zeros(1)}, weights)
    cv2.imwrite(str(image), np.zeros((32, 32, 3), np.uint8))
    predicted = [str(image), str(tmp_path / 'c.py'), str(weights), '--out', str(tmp_path / 'o.png')]
    for command in (['inspect', str(tmp_path / 'c.py')], ['predict', *predicted]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith(f'scalenet {command[0]}: error: ') and told in said and 'Traceback' not in said


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('mmdet::mask-rcn_r50.py', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('mmdet::mask_rcnn/mask-rcn_r50_fpn_1x_coco.py', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('mmdt::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'mmdet'),
    ],
)
def test_a_misspelt_config_of_a_library_is_refused_with_the_nearest_also_as_a_base(name, near, tmp_path):
    (tmp_path / 'own.py').write_text(f'_base_ = {name!r}\n')
    for path in (name, str(tmp_path / 'own.py')):
        with pytest.raises(SystemExit, match=f'^There is no config {name}.*{near}'):
            load_config(path)
