"""Increments as files: a delta is what training changed, and base + delta is the full checkpoint to the bit."""

import copy
import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import timm_vit
from mmengine.config import Config
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner
from safetensors import safe_open
from safetensors.torch import save_file
from toy_run import SCALED, ToyClassifier, ToyMetric, toy_config, write_base

from scalenet_mm.checkpoint import CheckpointError
from scalenet_mm.checkpoint.assemble import apply_to_file, assemble, export_delta, make_delta, verify_delta
from scalenet_mm.checkpoint.config_text import parse_config, registered_only
from scalenet_mm.checkpoint.delta_file import PUSHED, SEAL, DeltaSwitch, apply_delta, read_delta
from scalenet_mm.checkpoint.live_delta import delta_of
from scalenet_mm.checkpoint.loading import build_model, fill, load_base, load_weights
from scalenet_mm.checkpoint.publish import push_delta
from scalenet_mm.checkpoint.reading import read_checkpoint
from scalenet_mm.commands.main import main
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.ops import scale
from scalenet_mm.runner.config import build_runner
from scalenet_mm.runner.continuing import require_continuable

ROOT = Path(__file__).parents[1]
HOOKS = (dict(type='DeltaHook'),)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def full(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def header(path: Path) -> dict:
    with safe_open(path, framework='pt') as file:
        return file.metadata()


def rewritten(path: Path, out: Path, **changes: str) -> Path:
    """The same tensors under another header, which carries no seal, as those of 0.1.0."""
    with safe_open(path, framework='pt') as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    save_file(tensors, out, {k: v for k, v in {**header(path), **changes}.items() if k != SEAL})
    return out


def holding(cfg: Config, base: Path) -> torch.nn.Module:
    """A model of ``cfg`` that holds the base; what the base lacks keeps its initial values."""
    model = build_model(cfg)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    model.load_state_dict({**own, **torch.load(base)['state_dict']})
    return model


@pytest.fixture
def command(monkeypatch, capsys):
    """scalenet delta: (exit code or message, what it printed)."""

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['scalenet'])
        try:
            code = main(['delta', *map(str, args)])
        except SystemExit as error:  # of argparse
            code = error.code
        printed = capsys.readouterr()
        return printed.err if code == 2 else code, printed.out

    return call


# A micro Mask R-CNN, trained by the Runner


def detector_config(name: str, data: Path) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / f'{name}.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{data}/'
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(data / 'annotations' / 'instances_val2017.json')
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=300)
    return cfg


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Two epochs with EMA, a best checkpoint and ``max_keep_ckpts=1``: (config, base, work dir)."""
    from scalenet_mm.experiments.data import make_demo_data

    folder = tmp_path_factory.mktemp('run')
    data = make_demo_data(folder, ['coco'], train=8, val=8)['coco']
    source = build_model(detector_config('mask_rcnn_swin_digits', data))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in source.parameters():  # nowhere trivial
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    torch.save(dict(state_dict=source.state_dict()), folder / 'base.pth')
    cfg = detector_config('mask_rcnn_scalenet_swin_digits', data)
    cfg.load_from, cfg.work_dir = str(folder / 'base.pth'), str(folder / 'w')
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
    cfg.param_scheduler = []
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5), *HOOKS]
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP_50'
    )
    build_runner(cfg).train()
    return cfg, folder / 'base.pth', folder / 'w'


@pytest.fixture(scope='module', params=['hook', 'export'])
def delta_file(run, request, tmp_path_factory):
    """The last checkpoint's delta, as the hook wrote it and as it is exported afterwards."""
    _, base, work_dir = run
    if request.param == 'hook':
        return work_dir / 'epoch_2.delta.safetensors'
    out = tmp_path_factory.mktemp('export') / 'd.safetensors'
    export_delta(work_dir / 'epoch_2.pth', base, out)
    return out


def test_a_delta_lies_beside_every_checkpoint_that_is_kept(run):
    _, _, work_dir = run
    stems = {p.stem for p in work_dir.glob('*.pth')}
    assert 'epoch_2' in stems and any(s.startswith('best_coco') for s in stems) and len(stems) == 2
    assert {p.name for p in work_dir.glob('*.safetensors')} == {f'{stem}.delta.safetensors' for stem in stems}


def test_base_plus_delta_is_the_full_checkpoint_bit_for_bit(run, delta_file):
    _, base, work_dir = run
    model = assemble(delta_file, base)
    assert same(model.state_dict(), full(work_dir / 'epoch_2.pth')['state_dict'])
    assert model.dataset_meta['classes'] == [str(i) for i in range(10)]


def test_base_plus_delta_evaluates_to_the_numbers_of_the_full_checkpoint(run, tmp_path):
    cfg, base, work_dir = run
    best = next(work_dir.glob('best_*.pth'))

    def evaluate(name, load_from, *hooks):
        one = copy.deepcopy(cfg)
        one.work_dir, one.load_from = str(tmp_path / name), str(load_from)
        one.custom_hooks = [dict(type='AnyDialectHook'), dict(type='EMAHook'), *hooks]
        one.test_evaluator.outfile_prefix = str(tmp_path / name)
        metrics = Runner.from_cfg(one).test()
        return metrics, *(json.loads((tmp_path / f'{name}.{kind}.json').read_text()) for kind in ('bbox', 'segm'))

    delta = best.with_suffix('.delta.safetensors')
    whole = evaluate('full', best)
    assert evaluate('parts', base, dict(type='ApplyDeltaHook', delta=str(delta))) == whole
    metrics, boxes, masks = whole
    assert len(boxes) == len(masks) > 100 and len({box['score'] for box in boxes}) > 100
    assert read_delta(delta).metrics == metrics


def test_outputs_are_equal_to_the_bit(run, delta_file):
    cfg, base, work_dir = run
    parts, whole = assemble(delta_file, base), build_model(cfg)
    whole.load_state_dict(full(work_dir / 'epoch_2.pth')['state_dict'])
    whole.eval()
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        for a, b in zip(parts.extract_feat(images), whole.extract_feat(images)):
            assert torch.equal(a, b)


def trainable_bytes(model, policy) -> int:
    TrainPolicy.from_cfg(policy).apply(model)
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def test_a_delta_is_hardly_larger_than_what_is_trained(run, delta_file):
    cfg, _, work_dir = run
    trained = trainable_bytes(build_model(cfg), cfg.policy)
    size = delta_file.stat().st_size
    assert trained * 0.99 < size <= 1.05 * trained + 64 * 1024
    assert size < (work_dir / 'epoch_2.pth').stat().st_size / 20


@pytest.mark.slow
def test_a_delta_of_a_full_size_mask_rcnn_is_hardly_larger_than_what_is_trained(tmp_path):
    leaf = tmp_path / 'config.py'
    leaf.write_text("_base_ = ['mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py']")
    cfg = Config.fromfile(leaf)
    cfg.model.backbone.init_cfg = None
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'base.pth')
    cfg.model.backbone.type = 'ScaleNetSwin'
    policy = dict(also=['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'])
    model = holding(cfg, tmp_path / 'base.pth')
    trained = trainable_bytes(model, policy)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    meta = dict(cfg=cfg.pretty_text)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / 'full.pth')
    delta = export_delta(tmp_path / 'full.pth', tmp_path / 'base.pth', tmp_path / 'd.safetensors')
    size = (tmp_path / 'd.safetensors').stat().st_size
    print(f'trainable {trained:,} bytes, delta {size:,} bytes')
    assert delta.nbytes == trained < size <= 1.05 * trained + 64 * 1024
    assert trained > 4e6, 'adapters, norms and two layers of 81 and 320 outputs'


def test_a_checkpoint_of_the_runner_stores_each_tied_tensor_once(run, tmp_path):
    cfg = copy.deepcopy(run[0])
    cfg.work_dir, cfg.custom_hooks = str(tmp_path), []
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.save_checkpoint(str(tmp_path), 'a.pth', save_optimizer=False, save_param_scheduler=False)
    state = full(tmp_path / 'a.pth')['state_dict']
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    params = {id(p): p.nbytes for p in runner.model.parameters()}
    buffers = {id(b): b.nbytes for n, b in runner.model.named_buffers() if n in state}
    assert len(storages) == len(state) == len(params) + len(buffers)
    assert sum(storages.values()) == sum(params.values()) + sum(buffers.values())
    assert 0 < (tmp_path / 'a.pth').stat().st_size - sum(storages.values()) < 300_000


# Refusals


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """A toy run's (config, base, full checkpoint, delta), in a second."""
    folder = tmp_path_factory.mktemp('toy')
    base = write_base(folder / 'base.pth')
    cfg = toy_config(folder / 'w', base, hooks=HOOKS)
    Runner.from_cfg(cfg).train()
    return cfg, base, folder / 'w' / 'epoch_4.pth', folder / 'w' / 'epoch_4.delta.safetensors'


def test_another_base_is_refused_by_the_names_of_its_tensors(toy, tmp_path):
    cfg, base, _, delta = toy
    other = torch.load(base)
    other['state_dict']['backbone.layers.1.attn.qkv.weight'][0, 0] += 1e-6
    torch.save(other, tmp_path / 'other.pth')
    model = holding(cfg, tmp_path / 'other.pth')
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match='stands on base.pth') as error:
        apply_delta(model, delta)
    listed = [line.strip() for line in str(error.value).splitlines() if line.startswith('  ')]
    owner = model.backbone.layers.layer_map.owner(model.backbone.layers.layer_map.sources.index(1))
    assert listed == [f'backbone.layers.{owner}.attn.qkv.weight']
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ('scale', 'message'),
    [
        (dict(times=2, order='stack'), 'layer maps'),
        (dict(adjust=dict(type='ParallelAdapter', act='ReLU')), 'kind of adjustment'),
        (dict(adjust=dict(type='ParallelAdapter', rank=4)), 'of another shape'),
        (dict(adjust=dict(type='LoRA', rank=8)), 'kind of adjustment'),
    ],
)
def test_another_network_is_refused_before_anything_changes(toy, scale, message):
    cfg, base, _, delta = toy
    other = copy.deepcopy(cfg)
    other.model.backbone.scale = scale
    model = holding(other, base)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        apply_delta(model, delta)
    assert same(model.state_dict(), before)


@pytest.fixture
def broken(toy, tmp_path):
    """Files that are no delta of this format, by what is wrong with them."""
    _, _base, checkpoint, delta = toy
    data = delta.read_bytes()
    (tmp_path / 'truncated.safetensors').write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / 'damaged.safetensors').write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / 'empty.safetensors').write_bytes(b'')
    save_file({'a': torch.zeros(2)}, tmp_path / 'plain.safetensors')
    return {
        'truncated': tmp_path / 'truncated.safetensors',
        'damaged': tmp_path / 'damaged.safetensors',
        'empty': tmp_path / 'empty.safetensors',
        'plain': tmp_path / 'plain.safetensors',
        'full': checkpoint,
        'older': rewritten(delta, tmp_path / 'older.safetensors', format_version='0'),
        'newer': rewritten(delta, tmp_path / 'newer.safetensors', format_version='2'),
    }


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('truncated', 'truncated'),
        ('damaged', 'is damaged'),
        ('empty', 'it is empty'),
        ('plain', 'is not a delta'),
        ('full', r'is not a delta.*scalenet delta export'),
        ('older', r'format 0.*export it again'),
        ('newer', r'format 2.*update scalenet_mm'),
    ],
)
def test_a_file_that_is_no_delta_of_this_format_is_refused(broken, name, message):
    with pytest.raises(CheckpointError, match=message):
        read_delta(broken[name])


def test_the_fingerprint_is_the_sha256_of_name_type_shape_and_bytes(toy):
    _, _, checkpoint, delta = toy
    state, head = full(checkpoint)['state_dict'], header(delta)
    with safe_open(delta, framework='pt') as file:
        rest = sorted(set(state) - set(file.keys()))
    each = {
        n: hashlib.sha256(
            f'{n} {state[n].dtype} {tuple(state[n].shape)} '.encode() + state[n].numpy().tobytes()
        ).hexdigest()
        for n in rest
    }
    assert json.loads(head['base_digests']) == {n: d[:8] for n, d in each.items()}
    whole = hashlib.sha256(''.join(each[n] for n in rest).encode()).hexdigest()
    assert json.loads(head['fingerprint']) == whole


def test_a_pushed_delta_may_be_of_any_revision(monkeypatch):
    asked = []
    monkeypatch.setattr(
        'scalenet_mm.checkpoint.delta_file.read_checkpoint', lambda address: asked.append(address) or {}
    )
    for revision in ('', '@v1', '@refs/pr/1'):
        with pytest.raises(CheckpointError, match='is not a delta'):
            read_delta(f'hf://owner/repo{revision}')
    assert asked == [f'hf://owner/repo/{PUSHED}{revision}' for revision in ('', '@v1', '@refs/pr/1')]


def test_a_config_inside_a_file_is_read_and_not_run(toy, tmp_path, monkeypatch):
    _, base, _, delta = toy
    for name in ('mask_rcnn_scalenet_swin_digits', 'upernet_scalenet_swin_digits'):
        text = Config.fromfile(ROOT / 'configs' / 'demo' / f'{name}.py').pretty_text
        assert parse_config(text, 'x').to_dict() == Config.fromstring(text, '.py').to_dict()
    evil = f"open({str(tmp_path / 'ran')!r}, 'w').write('x')"
    called = f"type='builtins.open', file={str(tmp_path / 'ran')!r}, mode='w'"
    (tmp_path / 'planted').mkdir()
    for module in ('__init__', 'registry'):
        (tmp_path / 'planted' / f'{module}.py').write_text(evil)
    monkeypatch.syspath_prepend(tmp_path)  # as the folder that `python -m` is called in
    for text in (
        f'a = {evil}',
        evil,
        f'a = [dict(b={evil})]',
        f'model = dict({called})',
        "model = dict(type='builtins.print')",
        f"model = dict(type='ToyClassifier', backbone=dict({called}))",
        "custom_imports = dict(imports=['planted'])\nmodel = dict(type='ToyClassifier')",
        "default_scope = 'planted'\nmodel = dict(type='ToyClassifier')",
        "model = dict(type='planted.ToyClassifier')",
        f'model = dict(type="ToyClassifier", test_cfg=[dict(nms=dict(type={evil!r}))])',
        f'model = dict(type="ToyClassifier", tracker=dict(warp_mode={evil!r}))',
        "model = dict(type='mmengine.runner.Runner')",
    ):
        bad = rewritten(delta, tmp_path / 'evil.safetensors', config=json.dumps(text))
        with pytest.raises(CheckpointError, match='nothing stored in a file is run'):
            assemble(bad, base)
    assert not (tmp_path / 'ran').exists()
    with registered_only('x', {}, []):  # as a config of imported classes names them
        for name in ('torch.nn.Bilinear', 'torch.nn.GELU', 'mmpretrain.models.backbones.SwinTransformer'):
            assert MODELS.get(name).__name__ == name.rpartition('.')[2]


# What goes into a delta


def test_statistics_of_a_norm_in_training_are_in_the_delta_and_those_of_a_frozen_one_are_not(tmp_path):
    base = write_base(tmp_path / 'base.pth')
    for also, kept in ((['fc'], False), (['fc', 'bn'], True)):
        work_dir = tmp_path / str(kept)
        policy = dict(train='increments', also=also)
        Runner.from_cfg(toy_config(work_dir, base, policy=policy, hooks=HOOKS)).train()
        delta = read_delta(work_dir / 'epoch_4.delta.safetensors')
        names = {n for n in delta.tensors if n.startswith('bn.')}
        assert ('bn.running_mean' in names) == kept == ('bn.weight' in names)
        exported = export_delta(work_dir / 'epoch_4.pth', base)
        assert exported.tensors.keys() == delta.tensors.keys()
        assert same(assemble(delta, base).state_dict(), full(work_dir / 'epoch_4.pth')['state_dict'])


@MODELS.register_module()
class FrozenHead(ToyClassifier):
    """One that freezes its head itself; a policy that did would refuse a base without it."""

    def __init__(self, backbone: dict):
        super().__init__(backbone)
        self.bn.requires_grad_(False)
        self.fc.requires_grad_(False)


def test_what_the_base_lacks_is_in_the_delta_although_it_is_frozen(tmp_path):
    base = write_base(tmp_path / 'base.pth', head=False)
    cfg = toy_config(tmp_path / 'w', base, policy=dict(train='increments'), hooks=HOOKS)
    cfg.model.type = 'FrozenHead'
    Runner.from_cfg(cfg).train()
    delta = read_delta(tmp_path / 'w' / 'epoch_4.delta.safetensors')
    assert {'fc.weight', 'fc.bias'} <= delta.tensors.keys()
    state = full(tmp_path / 'w' / 'epoch_4.pth')['state_dict']
    assert same(assemble(delta, base).state_dict(), state)
    assert same(assemble(export_delta(tmp_path / 'w' / 'epoch_4.pth', base), base).state_dict(), state)


def test_a_base_that_equals_the_initial_values_is_no_part_of_the_delta(toy, tmp_path):
    """What is new is what the file does not supply, whatever the values."""
    cfg = toy_config(tmp_path / 'w', policy=dict(train='increments'), hooks=HOOKS)
    runner = Runner.from_cfg(cfg)
    runner._init_model_weights()
    heads = {k: v.clone() for k, v in runner.model.state_dict().items() if not k.startswith('backbone.')}
    base = read_checkpoint(toy[1])
    torch.save(dict(base, state_dict={**base['state_dict'], **heads}), tmp_path / 'base.pth')
    runner._load_from = str(tmp_path / 'base.pth')
    runner.train()
    delta = read_delta(tmp_path / 'w' / 'epoch_4.delta.safetensors')
    assert heads and not set(heads) & delta.tensors.keys()


def test_an_adapter_that_training_left_at_zero_is_in_the_delta_all_the_same(toy, tmp_path):
    cfg, base, *_ = toy
    state = holding(cfg, base).state_dict()
    torch.save(dict(meta=dict(cfg=cfg.pretty_text), state_dict=state), tmp_path / 'full.pth')
    delta = export_delta(tmp_path / 'full.pth', base)
    assert delta.tensors.keys() == {n for n in state if '.adapter.' in n}
    assert delta.tensors['backbone.layers.0.ffn.layers.1.adapter.up'].abs().max() == 0


def test_a_backbones_own_pretraining_is_a_base_too(tmp_path):
    base = write_base(tmp_path / 'base.pth', head=False)
    cfg = toy_config(tmp_path / 'w', hooks=HOOKS)
    cfg.model.backbone = dict(cfg.model.backbone, init_cfg=dict(type='Pretrained', checkpoint=str(base)))
    Runner.from_cfg(cfg).train()
    delta = read_delta(tmp_path / 'w' / 'epoch_4.delta.safetensors')
    assert delta.base == 'base.pth'
    state = full(tmp_path / 'w' / 'epoch_4.pth')['state_dict']
    assert same(assemble(delta, base).state_dict(), state)


@pytest.mark.parametrize('head', [True, False])
def test_a_models_own_pretraining_is_a_base_too(head, tmp_path):
    base = write_base(tmp_path / 'base.pth', head=head)
    also = ['fc'] if head else ['fc', 'bn']
    cfg = toy_config(tmp_path / 'w', policy=dict(train='increments', also=also), hooks=HOOKS)
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=str(base))
    Runner.from_cfg(cfg).train()
    delta = read_delta(tmp_path / 'w' / 'epoch_4.delta.safetensors')
    state = full(tmp_path / 'w' / 'epoch_4.pth')['state_dict']
    assert delta.base == 'base.pth' and same(assemble(delta, base).state_dict(), state)
    of_backbone = {name for name in delta.tensors if name.startswith('backbone.')}
    assert 0 < len(of_backbone) < sum(name.startswith('backbone.') for name in state)


def test_a_resumed_run_writes_the_same_delta(toy, tmp_path):
    _, base, _, whole = toy
    cfg = toy_config(tmp_path / 'w', base, hooks=HOOKS)
    cfg.train_cfg.max_epochs, cfg.param_scheduler[0].end = 2, 16  # the whole run's, as of one that was stopped
    Runner.from_cfg(cfg).train()
    cfg = toy_config(tmp_path / 'w', tmp_path / 'w' / 'epoch_2.pth', hooks=HOOKS)
    cfg.resume = True
    Runner.from_cfg(cfg).train()
    a, b = read_delta(whole), read_delta(tmp_path / 'w' / 'epoch_4.delta.safetensors')
    assert same(a.tensors, b.tensors) and a.fingerprint == b.fingerprint
    assert a.base == b.base == 'base.pth'


def test_a_delta_of_the_users_own_stays_when_there_is_no_checkpoint_beside_it(toy, tmp_path):
    _, base, _, delta = toy
    (tmp_path / 'w').mkdir()
    mine = tmp_path / 'w' / 'mine.delta.safetensors'
    mine.write_bytes(delta.read_bytes())
    cfg = toy_config(tmp_path / 'w', base, hooks=HOOKS, max_keep_ckpts=1)
    Runner.from_cfg(cfg).train()
    left = {p.name for p in (tmp_path / 'w').glob('*.safetensors')}
    assert left == {mine.name, 'epoch_4.delta.safetensors'}


def test_a_resumed_run_takes_up_what_the_one_before_left_of_its_deltas(toy, tmp_path):
    _, base, _, whole = toy
    cfg = toy_config(tmp_path / 'w', base, hooks=HOOKS, max_keep_ckpts=3)
    cfg.train_cfg.max_epochs = 3
    Runner.from_cfg(cfg).train()
    kept = tmp_path / 'w' / 'kept.delta.safetensors'
    kept.write_bytes(whole.read_bytes())
    for name in ('epoch_1.onnx', 'epoch_2.zip', 'epoch_3.onnx'):  # which is no checkpoint, and stays
        (tmp_path / 'w' / name).touch()
    (tmp_path / 'w' / 'epoch_3.delta.safetensors').unlink()  # ended between a checkpoint and its delta
    cfg = toy_config(tmp_path / 'w', tmp_path / 'w' / 'epoch_3.pth', hooks=HOOKS, max_keep_ckpts=2)
    cfg.resume = True
    Runner.from_cfg(cfg).train()
    left = {p.name for p in (tmp_path / 'w').glob('*.delta.safetensors')}
    assert left == {kept.name, 'epoch_3.delta.safetensors', 'epoch_4.delta.safetensors'}
    made_up = assemble(read_delta(tmp_path / 'w' / 'epoch_3.delta.safetensors'), base).state_dict()
    assert same(made_up, full(tmp_path / 'w' / 'epoch_3.pth')['state_dict'])


def test_a_delta_is_told_from_a_whole_checkpoint(toy, tmp_path):
    cfg, base, _, delta = toy
    with pytest.raises(CheckpointError, match='it is a delta.*scalenet delta apply BASE DELTA OUT.pth'):
        load_weights(holding(cfg, base), delta)
    cfg = copy.deepcopy(cfg)
    cfg.resume, cfg.load_from, cfg.work_dir = True, str(delta), str(tmp_path)
    with pytest.raises(CheckpointError, match=rf'It is a delta; scalenet delta apply BASE {delta} OUT.pth'):
        require_continuable(cfg, str(delta))


# In memory


def test_several_deltas_are_swapped_on_one_base_and_the_base_comes_back_bit_for_bit(toy, tmp_path):
    cfg, base, _, first = toy
    other = toy_config(tmp_path / 'w', base, policy=dict(train='increments', also=['bn']), hooks=HOOKS)
    other.randomness = dict(seed=1)
    Runner.from_cfg(other).train()
    second = tmp_path / 'w' / 'epoch_4.delta.safetensors'
    model = holding(cfg, base)
    before, objects = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    switch = DeltaSwitch(model)
    switch.add('first', first)
    switch.use('first')
    switch.add('second', second)  # checked against the base, not against what is in use
    for name, file in (('second', second), ('first', first), ('second', second)):
        switch.use(name)
        expected = assemble(file, base).state_dict()
        assert switch.active == name and same(model.state_dict(), expected)
    switch.use(None)
    assert same(model.state_dict(), before) and switch.active is None
    assert [id(p) for p in model.parameters()] == objects, 'optimizers and ties keep their tensors'
    with pytest.raises(ValueError, match=r"'third'; the names are \['first', 'second'\]"):
        switch.use('third')
    with pytest.raises(ValueError, match='already'):
        switch.add('first', second)


def test_apply_delta_reaches_every_layer_that_shares(toy, tmp_path):
    cfg, base, _, _ = toy
    also = toy_config(tmp_path / 'w', base, policy=dict(train='all'), hooks=HOOKS)
    Runner.from_cfg(also).train()
    model = holding(cfg, base)
    blocks = model.backbone.layers
    tied = blocks[0].attn.qkv.weight
    before = tied.detach().clone()
    apply_delta(model, tmp_path / 'w' / 'epoch_4.delta.safetensors')
    assert not torch.equal(tied, before)
    assert blocks[1].attn.qkv.weight is tied is blocks[0].attn.qkv.weight


# The command line and publishing


def test_the_tool_exports_shows_verifies_and_applies(toy, command, tmp_path):
    cfg, base, checkpoint, _ = toy
    delta, out = tmp_path / 'epoch_4.delta.safetensors', tmp_path / 'again.pth'
    kept = tmp_path / checkpoint.name
    kept.write_bytes(checkpoint.read_bytes())
    code, _ = command('export', kept, '--base', base)
    assert code == 0 and delta.exists(), 'beside the checkpoint'
    code, shown = command('info', delta)
    assert code == 0 and 'adjustment' in shown and 'epoch 4, iter 16' in shown
    assert 'base.pth' in shown and '[0, 0, 1, 1]' in shown and 'classes' in shown
    code, checked = command('verify', base, delta)
    assert code == 0 and 'is whole and stands on' in checked
    assert command('apply', base, delta, out)[0] == 0
    again, state = full(out), full(checkpoint)['state_dict']
    assert same(again['state_dict'], state)
    assert again['state_dict']._metadata['backbone'] == state._metadata['backbone']
    assert Config.fromstring(again['meta']['cfg'], '.py').model.to_dict() == cfg.model.to_dict()
    assert same(full(out)['state_dict'], state) and again['meta']['iter'] == 16

    code, _ = command('apply', base, delta, out)
    assert 'is there already; add --force' in code
    held = {file: file.read_bytes() for file in (base, delta, kept)}
    for words in (
        ('apply', base, delta, base, '--force'),
        ('apply', base, kept, kept, '--force'),
        ('export', delta, '--base', base, '--out', delta, '--force'),
    ):
        code, _ = command(*words)
        assert 'is read and would be written over' in code
    code, _ = command('export', delta, '--base', base, '--out', tmp_path / 'again.safetensors')
    assert 'is a delta already' in code
    assert {file: file.read_bytes() for file in held} == held
    code, _ = command('export', kept, '--base', kept, '--out', tmp_path / 'nothing.safetensors')
    assert code == 0 and not read_delta(tmp_path / 'nothing.safetensors').tensors
    code, _ = command('verify', write_base(tmp_path / 'other.pth', seed=5), delta)
    assert code.startswith('scalenet delta: error: ') and '.safetensors: The delta stands on base.pth' in code
    torch.save(dict(state_dict=state), tmp_path / 'plain.pth')
    export = 'export', tmp_path / 'plain.pth', '--base', base
    code, _ = command(*export)
    assert 'holds no config; name the one' in code
    cfg.dump(tmp_path / 'config.py')
    code, _ = command(*export, '--config', tmp_path / 'config.py')
    assert code == 0
    named = read_delta(tmp_path / 'plain.delta.safetensors')
    assert same(named.tensors, read_delta(delta).tensors)


def test_the_runner_loads_what_apply_wrote(toy, tmp_path):
    cfg, base, checkpoint, delta = toy
    apply_to_file(base, delta, tmp_path / 'again.pth')
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.load_from = str(tmp_path / 'w'), str(tmp_path / 'again.pth')
    cfg.custom_hooks = []
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    assert same(runner.model.state_dict(), full(checkpoint)['state_dict'])


def test_a_pushed_folder_loads_like_a_hub_repository_and_carries_a_card(toy, tmp_path):
    from huggingface_hub import ModelCard

    _, base, checkpoint, delta = toy
    files = push_delta(delta, tmp_path / 'pushed', base_model='someone/base')
    assert sorted(p.name for p in (tmp_path / 'pushed').iterdir()) == sorted(['README.md', 'config.py', PUSHED])
    assert len(files) == 3
    state = full(checkpoint)['state_dict']
    assert same(assemble(tmp_path / 'pushed', base).state_dict(), state)
    card = ModelCard.load(tmp_path / 'pushed' / 'README.md')
    assert card.data.license == 'apache-2.0' and card.data.library_name == 'scalenet_mm'
    assert card.data.base_model == 'someone/base' and 'scalenet' in card.data.tags
    code = card.text.split('```python\n')[1].split('```')[0]
    assert 'assemble(' in code and '[0, 0, 1, 1]' not in code
    assert '0, 0, 1, 1' in card.text and 'acc' in card.text
    here = {}
    snippet = code.replace("'.'", repr(str(tmp_path / 'pushed'))).replace("'base.pth'", repr(str(base)))
    exec(snippet, here)  # the card's own lines
    assert same(here['model'].state_dict(), state)
    with pytest.raises(FileExistsError, match='--force'):
        push_delta(delta, tmp_path / 'pushed')


@pytest.mark.parametrize(
    ('dest', 'said'),
    [
        ('https://huggingface.co/me/repo', 'is neither a folder nor of the form hf://owner/repo; write hf://me/repo'),
        ('s3://bucket/folder', 'is neither a folder nor of the form hf://owner/repo'),
        ('hf://repo', 'is neither a folder nor of the form hf://owner/repo'),
    ],
)
def test_a_push_to_another_address_than_the_hubs_is_refused(dest, said, toy, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = command('push', toy[-1], dest)
    assert code == f'scalenet delta: error: {dest} {said}\n' and not list(tmp_path.iterdir())


def test_a_push_replaces_no_card_of_a_repository_unasked(toy, tmp_path, monkeypatch):
    there = {'README.md', 'other.bin'}

    def upload(*, folder_path, delete_patterns, **_):
        there.difference_update(delete_patterns)
        there.update(p.name for p in Path(folder_path).iterdir())

    hub = SimpleNamespace(
        create_repo=lambda *_, **__: None, list_repo_files=lambda repo: sorted(there), upload_folder=upload
    )
    monkeypatch.setattr('huggingface_hub.HfApi', lambda: hub)  # stands in for the Hub, which is not reached here
    with pytest.raises(FileExistsError, match=r'^hf://me/repo holds README.md already; add --force'):
        push_delta(toy[-1], 'hf://me/repo')
    assert there == {'README.md', 'other.bin'}
    push_delta(toy[-1], 'hf://me/repo', force=True)
    assert there == {'README.md', 'other.bin', 'config.py', PUSHED}
    there.add('config.json')  # of a delta of another kind
    push_delta(toy[-1], 'hf://me/repo', force=True)
    assert there == {'README.md', 'other.bin', 'config.py', PUSHED}


def test_a_delta_of_a_live_network_is_told_from_one_with_a_config(command, tmp_path):
    source = timm_vit(2)
    torch.save(source.state_dict(), tmp_path / 'base.pth')
    model = scale(copy.deepcopy(source), times=2)
    delta_of(model, source).save(tmp_path / 'live.delta.safetensors')
    for words in (('verify', 'base.pth'), ('apply', 'base.pth')):
        out = (tmp_path / 'out.pth',) if words[0] == 'apply' else ()
        code, _ = command(words[0], tmp_path / words[1], tmp_path / 'live.delta.safetensors', *out)
        assert re.search(r'delta(\.safetensors)? is of a network that scalenet_mm.scale made', code)
        assert (
            code.endswith('scalenet_mm.checkpoint.live_delta.scale_by_delta(network, delta).\n')
            and not (tmp_path / 'out.pth').exists()
        )


@METRICS.register_module()
class ManyKinds(ToyMetric):
    def compute_metrics(self, results):
        return dict(acc=np.float32(1), zero=torch.tensor(0), each=[1.0, 2.0], matrix=torch.eye(2), name='x')


@pytest.mark.parametrize('averaged', [True, False])
def test_a_delta_tells_the_metrics_of_the_weights_that_it_holds(averaged, tmp_path):
    """A checkpoint holds the average, even where only the raw weights were validated."""
    ema = dict(type='mmpretrain.EMAHook', momentum=0.5, evaluate_on_ema=averaged, evaluate_on_origin=not averaged)
    cfg = toy_config(tmp_path / 'w', write_base(tmp_path / 'base.pth'), hooks=[*HOOKS, ema])
    cfg.train_cfg.max_epochs = 1
    build_runner(cfg).train()
    assert bool(read_delta(tmp_path / 'w' / 'epoch_1.delta.safetensors').metrics) == averaged


def test_a_base_that_keeps_an_average_is_the_base_of_its_deltas(toy, tmp_path):
    """mmpretrain's EMAHook swaps the average of a file in, though nothing is resumed."""
    cfg, base, checkpoint, delta = toy
    file = full(base)
    other = {f'module.{k}': v + 1 if v.is_floating_point() else v for k, v in file['state_dict'].items()}
    torch.save({**file, 'ema_state_dict': {'steps': torch.tensor(3), **other}}, tmp_path / 'averaged.pth')
    cfg = copy.deepcopy(cfg)
    cfg.work_dir, cfg.load_from = str(tmp_path / 'w'), str(tmp_path / 'averaged.pth')
    cfg.experiment_name = 'averaged'
    cfg.custom_hooks = [dict(type='AnyDialectHook'), dict(type='mmpretrain.EMAHook', momentum=0.5)]
    cfg.custom_hooks.append(dict(type='ApplyDeltaHook', delta=str(delta)))
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, dict()
    runner = build_runner(cfg)
    runner.test()
    assert same(runner.model.state_dict(), full(checkpoint)['state_dict'])


def test_metrics_that_are_no_numbers_are_left_out_of_a_delta(tmp_path):
    cfg = toy_config(tmp_path / 'w', write_base(tmp_path / 'base.pth'), hooks=HOOKS)
    cfg.val_evaluator, cfg.train_cfg.max_epochs = dict(type='ManyKinds'), 1
    build_runner(cfg).train()
    assert read_delta(tmp_path / 'w' / 'epoch_1.delta.safetensors').metrics == dict(acc=1.0, zero=0.0)


@pytest.mark.parametrize(('template', 'named'), [('m_{}.pt', 'm_{}'), ('m_{}', 'm_{}'), ('v1.{}', 'v1.{}')])
def test_a_delta_stays_as_long_as_its_checkpoint_whatever_that_is_called(template, named, tmp_path):
    base = write_base(tmp_path / 'base.pth')
    for epochs in (3, 4):
        cfg = toy_config(tmp_path / 'w', base, hooks=HOOKS, filename_tmpl=template, max_keep_ckpts=2)
        cfg.train_cfg.max_epochs, cfg.resume = epochs, epochs == 4
        cfg.load_from = None if cfg.resume else cfg.load_from
        build_runner(cfg).train()
        assert {p.name for p in (tmp_path / 'w').glob('*.delta.safetensors')} == {
            f'{named.format(epoch)}.delta.safetensors' for epoch in (epochs - 1, epochs)
        }


def test_the_card_of_a_live_networks_delta_has_code_that_runs(tmp_path):
    source = timm_vit(2)
    model = scale(copy.deepcopy(source), times=2)
    with torch.no_grad():
        for p in (p for n, p in model.named_parameters() if 'adapter' in n):
            p.add_(0.01)
    delta_of(model, source, tmp_path / 'mine' / 'base.pth').save(tmp_path / 'd.safetensors')
    push_delta(tmp_path / 'd.safetensors', tmp_path / 'pushed')
    card = (tmp_path / 'pushed' / 'README.md').read_text()
    assert str(tmp_path) not in card and 'base.pth' in card
    here = dict(network=copy.deepcopy(source))
    exec(card.split('```python\n')[1].split('```')[0].replace("'.'", repr(str(tmp_path / 'pushed'))), here)
    assert same(here['network'].state_dict(), model.state_dict())


def test_the_config_of_a_hugging_face_model_is_pushed_as_json(toy, tmp_path):
    *_, delta = toy
    told = dataclasses.replace(read_delta(delta), config='{"scalenet": {"start": true}}')
    told.save(tmp_path / 'd.safetensors')
    push_delta(tmp_path / 'd.safetensors', tmp_path / 'pushed')
    assert json.loads((tmp_path / 'pushed' / 'config.json').read_text()) == {'scalenet': {'start': True}}
    card = (tmp_path / 'pushed' / 'README.md').read_text()
    assert 'scale_by_delta(network' in card and 'Training settings: `config.json`' in card


@pytest.mark.parametrize(('base_model', 'named'), [(None, 'llama'), ('someone/llama', 'someone/llama')])
def test_a_pushed_delta_names_no_folder_of_this_machine(base_model, named, toy, tmp_path):
    *_, delta = toy
    told = dataclasses.replace(read_delta(delta), config='{"dtype": "float32"}', base=str(tmp_path / 'llama'))
    told.save(tmp_path / 'd.safetensors')
    push_delta(delta, tmp_path / 'pushed')
    push_delta(tmp_path / 'd.safetensors', tmp_path / 'pushed', base_model=base_model, force=True)
    assert sorted(p.name for p in (tmp_path / 'pushed').iterdir()) == sorted(['README.md', 'config.json', PUSHED])
    assert read_delta(tmp_path / 'pushed').base == named
    assert str(tmp_path) not in (tmp_path / 'pushed' / 'README.md').read_text()


def test_a_delta_names_a_base_on_the_hub_in_its_card(toy, tmp_path):
    from huggingface_hub import ModelCard

    *_, delta = toy
    other = dataclasses.replace(read_delta(delta), base='hf://someone/base/model.pth')
    other.save(tmp_path / 'd.safetensors')
    push_delta(tmp_path / 'd.safetensors', tmp_path / 'pushed')
    card = ModelCard.load(tmp_path / 'pushed' / 'README.md')
    assert card.data.base_model == 'someone/base'


def test_training_refuses_a_delta_hook_that_is_for_evaluation(toy, tmp_path):
    _cfg, base, _, delta = toy
    hook = dict(type='ApplyDeltaHook', delta=str(delta))
    with pytest.raises(RuntimeError, match='scalenet delta apply BASE DELTA'):
        Runner.from_cfg(toy_config(tmp_path / 'w', base, hooks=[hook])).train()


def test_verify_names_a_base_that_is_another_one(toy, tmp_path):
    _, base, _, delta = toy
    assert verify_delta(base, delta).base == 'base.pth'
    with pytest.raises(CheckpointError, match=r'\d+ of \d+ tensors differ') as e:
        verify_delta(write_base(tmp_path / 'b.pth', seed=5), delta)
    assert str(e.value).endswith(f'Name base.pth in the place of {tmp_path / "b.pth"}.')


@pytest.mark.parametrize('growth', ['random', 'stack', 'interpolate', 'swa', 'zero'])
@pytest.mark.parametrize('train', ['increments', 'adjustments'])
def test_a_delta_of_new_layers_gives_them_back(growth, train, tmp_path):
    base = write_base(tmp_path / 'base.pth')
    cfg = toy_config(tmp_path / 'w', base, policy=dict(train=train, also=['fc']), hooks=HOOKS)
    scale = dict(growth=growth, new_layers=1, adjust=dict(type='LoRA', rank=2))
    cfg.model.backbone, cfg.train_cfg.max_epochs = dict(SCALED, scale=scale), 1
    build_runner(cfg).train()
    torch.manual_seed(9)  # other values of what is drawn at random
    model = assemble(tmp_path / 'w' / 'epoch_1.delta.safetensors', base)
    assert same(model.state_dict(), full(tmp_path / 'w' / 'epoch_1.pth')['state_dict'])


def test_a_config_of_another_layer_map_is_refused_though_its_names_are_the_same(tmp_path):
    base, configs = write_base(tmp_path / 'base.pth'), {}
    for name, sources in (('mine', [0, 1, 0, 1]), ('other', [0, 1, 1, 0])):
        configs[name] = toy_config(tmp_path / 'w', base)
        configs[name].model.backbone = dict(SCALED, scale=dict(sources=sources))
    model = build_model(configs['mine'])
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'x.pth')
    assert export_delta(tmp_path / 'x.pth', base, config=configs['mine']).structure
    with pytest.raises(CheckpointError, match=r'other layer maps .*\[0, 1, 0, 1\].*the config that it was trained'):
        export_delta(tmp_path / 'x.pth', base, config=configs['other'])


def test_what_a_base_may_lack_is_in_the_delta_of_adjustments(tmp_path):
    base = write_base(tmp_path / 'base.pth')
    state = torch.load(base, weights_only=True)['state_dict']
    lacks = {k: v for k, v in state.items() if not k.startswith('backbone.ln2.')}
    assert len(lacks) == len(state) - 2
    torch.save(dict(state_dict=lacks), base)
    cfg = toy_config(tmp_path / 'w', base, policy=dict(train='adjustments', also=['fc']), hooks=HOOKS)
    cfg.train_cfg.max_epochs = 1
    build_runner(cfg).train()
    model = assemble(tmp_path / 'w' / 'epoch_1.delta.safetensors', base)
    assert same(model.state_dict(), full(tmp_path / 'w' / 'epoch_1.pth')['state_dict'])


class Pair(torch.nn.Module):
    """As mmdet's teacher and student: no backbone at the top."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.student, self.teacher = model, copy.deepcopy(model)


def test_a_model_of_two_networks_takes_its_own_checkpoint():
    model = Pair(MODELS.build(dict(type='ToyClassifier', backbone=SCALED)))
    state = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    fill(model, state)
    assert same(model.state_dict(), state)


def test_a_base_is_read_by_the_prefix_of_its_backbone(tmp_path):
    base, moved = write_base(tmp_path / 'base.pth'), tmp_path / 'moved.pth'
    state = torch.load(base, weights_only=True)['state_dict']
    renamed = {k.replace('backbone.', 'encoder.'): v for k, v in state.items() if k.startswith('backbone.')}
    torch.save(dict(state_dict=renamed), moved)
    read = dict(type='Pretrained', checkpoint=str(moved), prefix='encoder.')
    model, plain = (
        MODELS.build(dict(type='ToyClassifier', backbone=dict(SCALED, **more))) for more in (dict(init_cfg=read), {})
    )
    load_base(model, moved)
    load_base(plain, base)
    for name, value in plain.backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]) or value.isnan().all(), name


def test_parentheses_in_the_name_of_a_file_are_no_code():
    parts = dict(type='ToyClassifier', init_cfg=dict(type='Pretrained', checkpoint='/data/swin (1).pth'))
    with registered_only('x', [parts, dict(backbone=dict(pretrained='a (b).pth'))], []):
        pass
    evaluated = registered_only('x', dict(parts, warp_mode='print(1)'), [])
    with pytest.raises(CheckpointError, match='nothing stored in a file is run'), evaluated:
        pass


def test_a_changed_header_is_refused(tmp_path):
    model = torch.nn.Linear(2, 1)
    make_delta(model.state_dict(), ['bias'], model, 'base.pth', 'heads = 2\n').save(tmp_path / 'x.delta.safetensors')
    data = (tmp_path / 'x.delta.safetensors').read_bytes()
    (tmp_path / 'x.delta.safetensors').write_bytes(data.replace(b'heads = 2', b'heads = 4'))
    with pytest.raises(CheckpointError, match=r'x\.delta\.safetensors is damaged: its header is not'):
        read_delta(tmp_path / 'x.delta.safetensors')
