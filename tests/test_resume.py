"""Resume is exact: a run killed and resumed equals the uninterrupted one to the bit (CPU)."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from toy_run import toy_config

from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.runner.config import build_runner
from scalenet_mm.runner.resume import SeededDataset, SeededIndex, SeededSampler, make_resumable, seed_everything

ROOT = Path(__file__).parents[1]
AUGMENT = """
from mmcv.transforms import TRANSFORMS, BaseTransform
import random, numpy as np, torch, time
@TRANSFORMS.register_module()
class Jitter(BaseTransform):
    '''Draws from all three generators.'''
    def transform(self, results):
        img = results['img'].astype(np.float32)
        img = img + 20 * random.random() + 20 * np.random.rand() + 20 * torch.rand(1).item()
        results['img'] = img.clip(0, 255).astype(np.uint8)
        time.sleep(float(__import__('os').environ.get('JITTER_SLEEP', 0)))
        return results
"""
LOOPS = {
    'epochs': dict(train_cfg=dict(by_epoch=True, max_epochs=4, val_interval=1), interval=1, by_epoch=True),
    'iterations': dict(
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=16, val_interval=4), interval=4, by_epoch=False
    ),
}


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    from scalenet_mm.experiments.data import make_demo_data

    return make_demo_data(tmp_path_factory.mktemp('digits'), ['imagenet'], train=76, val=38)['imagenet']


def write_config(folder: Path, digits: Path, loop: str, workers: int) -> Path:
    """A small scaled DeiT with every source of randomness: shuffling, augmentation, mixup, drop-out, drop path."""
    cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'demo_cls.py')
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    cfg.model.backbone = dict(
        type='ScaleNetDeiT',
        arch=arch,
        img_size=32,
        patch_size=8,
        drop_path_rate=0.3,
        drop_rate=0.1,
        out_type='avg_featmap',
    )
    cfg.model.head = dict(
        type='LinearClsHead', num_classes=19, in_channels=32, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)
    )
    cfg.model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        data = loader.dataset.get('dataset', loader.dataset)
        data.data_root, loader.batch_size = str(digits), 19
        loader.num_workers, loader.persistent_workers = workers, workers > 0
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Jitter'))
    if loop == 'iterations':
        cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    cfg.custom_imports = dict(imports=['scalenet_mm', 'jitter'])
    cfg.optim_wrapper = dict(
        type='OptimWrapper',
        constructor='ScaleNetOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
        paramwise_cfg=dict(policy=dict(train='increments', also=['head'])),
    )
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', T_max=16, by_epoch=False)]
    spec = LOOPS[loop]
    cfg.train_cfg = spec['train_cfg']
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=spec['interval'], by_epoch=spec['by_epoch'], max_keep_ckpts=-1
    )
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'jitter.py').write_text(AUGMENT)
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def run(config: Path, work_dir: Path, *args: str, sleep: float = 0.0) -> subprocess.Popen:
    env = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(config.parent), str(ROOT)]),
        'JITTER_SLEEP': str(sleep),
        'OMP_NUM_THREADS': '1',
    }
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(work_dir), *args]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]


def final_state(work_dir: Path) -> dict:
    path = Path((work_dir / 'last_checkpoint').read_text().strip())
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ('loop', 'workers'),
    [
        ('epochs', 2),
        pytest.param('iterations', 2, marks=pytest.mark.slow),
        pytest.param('epochs', 0, marks=pytest.mark.slow),
        pytest.param('iterations', 0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(loop, workers, digits, tmp_path):
    config = write_config(tmp_path / 'c', digits, loop, workers)
    whole = run(config, tmp_path / 'whole')
    killed = run(config, tmp_path / 'killed', sleep=0.05)
    first = tmp_path / 'killed' / ('epoch_2.pth' if loop == 'epochs' else 'iter_8.pth')
    deadline = time.time() + 400
    while (
        not (tmp_path / 'killed' / 'last_checkpoint').exists()
        or first.name not in (tmp_path / 'killed' / 'last_checkpoint').read_text()
    ):
        assert time.time() < deadline and killed.poll() is None, killed.stdout.read()[-3000:]
        time.sleep(0.05)
    time.sleep(0.3)  # in the middle of what follows
    assert killed.poll() is None, 'still running'
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    finish(whole)
    assert (
        Path((tmp_path / 'killed' / 'last_checkpoint').read_text().strip()).name
        != (tmp_path / 'whole' / 'last_checkpoint').read_text().strip().rpartition('/')[2]
    )
    finish(run(config, tmp_path / 'killed', '--resume'))
    a, b = final_state(tmp_path / 'whole'), final_state(tmp_path / 'killed')
    for key in ('state_dict', 'ema_state_dict'):
        assert a[key].keys() == b[key].keys()
        assert all(torch.equal(a[key][k], b[key][k]) for k in a[key])
    for i, state in a['optimizer']['state'].items():
        assert all(torch.equal(state[k], b['optimizer']['state'][i][k]) for k in ('exp_avg', 'exp_avg_sq'))
    whole_log, resumed_log = (s['message_hub']['log_scalars']['val/accuracy/top1']._log_history for s in (a, b))
    # mmengine saves before it validates: the validation of the checkpoint's own epoch is lost with the killed process
    assert np.array_equal(np.delete(whole_log, 1), resumed_log) and len(resumed_log) == 2


def steps_saved(folder: Path, resume: Path | None = None, **train_loader):
    """Four epochs of four iterations, saved after each iteration, from the start or from a checkpoint."""
    cfg = toy_config(folder)
    cfg.default_hooks.checkpoint.update(by_epoch=False)
    cfg.train_dataloader.update(train_loader)
    cfg.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    cfg.param_scheduler.append(dict(type='StepLR', step_size=1, gamma=0.5))
    if resume:
        cfg.resume, cfg.load_from = True, str(resume)
    build_runner(cfg).train()
    return folder


def test_a_run_saved_within_an_epoch_continues_there_and_again(tmp_path):
    whole = steps_saved(tmp_path / 'whole')
    within = steps_saved(tmp_path / 'within', whole / 'iter_6.pth')
    again = steps_saved(tmp_path / 'again', within / 'iter_7.pth')
    at_its_end = steps_saved(tmp_path / 'end', whole / 'iter_8.pth')  # before its validation and its schedulers' step
    last = [torch.load(folder / 'iter_16.pth', weights_only=False) for folder in (whole, within, again, at_its_end)]
    for found in last[1:]:
        assert (
            found['meta']['epoch'] == last[0]['meta']['epoch']
            and found['param_schedulers'] == last[0]['param_schedulers']
        )
        for key in ('state_dict', 'ema_state_dict'):
            assert all(torch.equal(found[key][name], value) for name, value in last[0][key].items())
    for folder, begun in ((within, 6), (again, 7), (at_its_end, 8)):
        assert {p.name for p in folder.glob('*.pth')} == {f'iter_{n}.pth' for n in range(begun + 1, 17)}


def test_a_run_saved_within_an_epoch_of_another_length_is_not_continued(tmp_path):
    whole = steps_saved(tmp_path / 'whole')
    said = (
        r'iter_6\.pth was written after 2 of 4 iterations of epoch 2, and an epoch has 2 now; continue with the batch '
    )
    with pytest.raises(CheckpointError, match=said):
        steps_saved(tmp_path / 'other', whole / 'iter_6.pth', batch_size=6)


def test_nothing_in_a_checkpoint_is_run_when_a_run_continues_from_it(tmp_path):
    whole = steps_saved(tmp_path / 'whole')
    content = torch.load(whole / 'iter_12.pth', weights_only=False)
    content['meta']['config'] = f"open({str(tmp_path / 'run')!r}, 'w')\n"
    torch.save(content, tmp_path / 'iter_12.pth')
    steps_saved(tmp_path / 'resumed', tmp_path / 'iter_12.pth')
    assert not (tmp_path / 'run').exists()


def draw() -> tuple:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


class Draws(torch.utils.data.Dataset):
    metainfo = 'kept'

    def __getitem__(self, index):
        return index, draw()

    def __len__(self):
        return 6


def test_a_samples_randomness_depends_on_its_place_only():
    sampler = SeededSampler(Draws(), dict(type='DefaultSampler', shuffle=True), seed=3)
    dataset = SeededDataset(Draws())
    whole = [dataset[i] for i in sampler]
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = list(sampler)
    assert [dataset[i] for i in again[3:]] == whole[3:]
    assert len({d for _, d in whole}) == 6
    sampler.set_epoch(1)
    assert {d for _, d in (dataset[i] for i in sampler)}.isdisjoint(d for _, d in whole)
    assert dataset.metainfo == 'kept' and len(dataset) == len(sampler) == 6


def test_samples_that_were_seen_are_skipped_without_being_read():
    def made() -> SeededSampler:
        return SeededSampler(Draws(), dict(type='InfiniteSampler', shuffle=True), seed=3)

    whole, later = list(islice(made(), 20)), made()
    later.skip(13)
    assert [(i, i.key) for i in islice(later, 7)] == [(i, i.key) for i in whole[13:]]
    assert not hasattr(SeededSampler(Draws(), dict(type='DefaultSampler'), seed=3), 'skip')


def test_a_sample_is_seeded_as_an_iteration_without_a_visit_to_every_device(monkeypatch):
    seed_everything(1, 2)
    expected = draw()
    monkeypatch.setattr(torch, 'manual_seed', lambda seed: pytest.fail(f'torch.manual_seed({seed}): slow'))
    assert SeededDataset(Draws())[SeededIndex(0, (1, 2))] == (0, expected)


def test_seeded_indices_survive_the_way_to_a_worker():
    import pickle

    index = pickle.loads(pickle.dumps(SeededIndex(5, (1, 2, 3))))
    assert index == 5 and index.key == (1, 2, 3)


def test_any_config_is_made_resumable_once():
    cfg = Config(
        dict(train_dataloader=dict(dataset=dict(type='A'), sampler=dict(type='B')), randomness=dict(deterministic=True))
    )
    make_resumable(cfg)
    make_resumable(cfg)
    assert cfg.train_dataloader.dataset == dict(type='SeededDataset', dataset=dict(type='A'))
    assert cfg.train_dataloader.sampler == dict(type='SeededSampler', sampler=dict(type='B'), seed=0)
    assert cfg.custom_hooks == [dict(type='ReseedHook')] and cfg.randomness == dict(deterministic=True, seed=0)
