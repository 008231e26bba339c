"""Distillation from the source model: losses against explicit sums, and a teacher that is nowhere in the student."""

import copy
import hashlib
import math
import pickle
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import DEIT, SWIN, perturb, timm_vit
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmpretrain.structures import DataSample
from torch.nn.parallel import DistributedDataParallel

from scalenet_mm.checkpoint import CheckpointError
from scalenet_mm.checkpoint.assemble import assemble
from scalenet_mm.checkpoint.delta_file import SUFFIX
from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.core.layer_map import LayerMap
from scalenet_mm.core.roles import Role, roles
from scalenet_mm.models.distill import DistilledClassifier, Teacher, layer_loss, logit_loss, matching_instances
from scalenet_mm.runner.config import build_runner
from scalenet_mm.runner.preflight import preflight

CONFIGS = Path(__file__).parents[1] / 'configs'
IMAGE = dict(img_size=32, patch_size=8)


def classifier(distill=None, scale=None, classes=5, loss_weight=1.0, **backbone) -> dict:
    """A scaled DeiT whose source is ``timm_vit(3)``."""
    return dict(
        type='DistilledClassifier' if distill else 'mmpretrain.ImageClassifier',
        **(dict(distill=distill) if distill else {}),
        backbone=dict(type='ScaleNetDeiT', arch=DEIT, scale=scale, **IMAGE, **backbone),
        head=dict(
            type='mmpretrain.VisionTransformerClsHead',
            num_classes=classes,
            in_channels=32,
            loss=dict(type='mmpretrain.CrossEntropyLoss', loss_weight=loss_weight),
        ),
    )


def build(cfg: dict, seed: int = 0) -> torch.nn.Module:
    """With weights that are nowhere trivial."""
    init_default_scope('mmpretrain')
    model = MODELS.build(copy.deepcopy(cfg))
    return perturb(model, seed).train()


def batch(number: int = 3, classes: int = 5, dtype=torch.float32):
    samples = [DataSample().set_gt_label(i % classes) for i in range(number)]
    return torch.randn(number, 3, 32, 32, dtype=dtype), samples


@pytest.fixture
def source(tmp_path):
    """(timm's ViT in float64, its file)."""
    vit = perturb(timm_vit(3)).double().eval()
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    return vit, str(tmp_path / 'vit.pth')


def softmax_by_hand(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [x / math.fsum(powers) for x in powers]


def kl_by_hand(student, teacher, temperature: float) -> float:
    """T^2 KL(teacher || student), one distribution after the other, in Python's floats."""
    rows = []
    for s, t in zip(student.flatten(0, -2).tolist(), teacher.flatten(0, -2).tolist()):
        p, q = (softmax_by_hand([x / temperature for x in row]) for row in (t, s))
        rows.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q)))
    return temperature**2 * math.fsum(rows) / len(rows)


def distance_by_hand(student, teacher, eps: float = 1e-5):
    """Mean over layers of the mean squared difference of standardised tokens."""
    found = []
    for s, t in zip(student, teacher):
        a, b = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps) ** 0.5 for x in (s, t))
        found.append(((a - b) ** 2).sum() / a.numel())
    return sum(found) / len(found)


@pytest.mark.parametrize('temperature', [1.0, 2.5])
@pytest.mark.parametrize('shape', [(4, 7), (2, 16, 7)])
def test_the_loss_on_logits_is_the_sum_of_its_definition(shape, temperature):
    student, teacher = (3 * torch.randn(shape, dtype=torch.float64) for _ in range(2))
    expected = kl_by_hand(student, teacher, temperature)
    found = logit_loss(student, teacher, temperature).item()
    assert math.isclose(found, expected, rel_tol=1e-12)
    assert logit_loss(teacher, teacher, temperature) == 0


def test_the_loss_on_layers_is_the_distance_of_standardised_tokens_whatever_their_scale():
    student, teacher = ([torch.randn(2, 5, 64, dtype=torch.float64) for _ in range(3)] for _ in '12')
    found = layer_loss(student, teacher)
    torch.testing.assert_close(found, distance_by_hand(student, teacher), rtol=1e-12, atol=0)
    scaled = layer_loss([30 * x + 7 for x in student], teacher)
    torch.testing.assert_close(scaled, found, rtol=1e-3, atol=0)


@pytest.mark.parametrize(('times', 'layers'), [(1, 'all'), *product((2, 3), ('all', (0, 2), (1,)))])
def test_the_last_instance_of_an_interpolated_layer_matches_it(times, layers):
    layer_map = LayerMap.build(4, times, 'interpolate', layers)
    assert matching_instances(layer_map) == tuple(layer_map.instances(s)[-1] for s in range(4))


def test_stacked_layers_match_at_the_same_share_of_the_depth():
    assert matching_instances(LayerMap.build(4, 2, 'stack')) == (1, 3, 5, 7)
    assert matching_instances(LayerMap.build(4, 3, 'stack')) == (2, 5, 8, 11)
    assert matching_instances(LayerMap.build(4, 1.5, 'stack'))[-1] == 5


def vit_blocks(vit, x):
    """Outputs of all blocks, by calling timm's parts."""
    x = vit._pos_embed(vit.patch_embed(x))
    found = []
    for block in vit.blocks:
        x = block(x)
        found.append(x)
    return found


def host_blocks(net, x):
    """The same of mmpretrain's."""
    x = net.patch_embed(x)[0]
    x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], 1) + net.pos_embed
    found = []
    for layer in net.layers:
        x = layer(x)
        found.append(x)
    return found


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('order', ['interpolate', 'stack'])
def test_the_student_gets_the_gradients_of_the_loss_written_by_hand(source, order, with_cp):
    """The teacher is read from timm's names, and timm's own network says what it computes."""
    vit, file = source
    distill = dict(checkpoint=file, logits=0.7, temperature=2.0, layers=0.3)
    scale = dict(times=2, order=order, adjust=dict(type='ParallelAdapter', rank=4))
    student = build(classifier(distill, scale, loss_weight=0.0, with_cp=with_cp), 1).double()
    images, samples = batch(dtype=torch.float64)
    with torch.no_grad():
        wanted, logits = vit_blocks(vit, images), vit(images)
    images.requires_grad_()  # through the student alone

    blocks = [host_blocks(student.backbone, images)[i] for i in (1, 3, 5)]
    scores = student(images, mode='tensor')
    q = torch.exp(scores / 2) / torch.exp(scores / 2).sum(1, keepdim=True)
    p = torch.exp(logits / 2) / torch.exp(logits / 2).sum(1, keepdim=True)
    on_logits = 0.7 * 4 * (p * torch.log(p / q)).sum() / len(images)
    on_layers = 0.3 * distance_by_hand(blocks, wanted)
    parameters = dict(student.named_parameters(), images=images)
    expected = torch.autograd.grad(on_logits + on_layers, parameters.values())

    losses = student(images, samples, mode='loss')
    torch.testing.assert_close(losses['loss_distill_logits'], on_logits, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses['loss_distill_layers'], on_layers, rtol=1e-9, atol=0)
    total, _ = student.parse_losses(losses)
    total.backward()
    for (name, p), gradient in zip(parameters.items(), expected):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-7, atol=1e-12, msg=name)
    nets = student, student.teacher.network(images)
    assert not any(m._forward_hooks for net in nets for m in net.modules())


@pytest.mark.parametrize('host', ['deit', 'swin'])
def test_a_student_that_starts_at_the_source_function_has_nothing_to_learn_from_it(host, tmp_path):
    """Interpolated, with gates: the last instance of a layer puts out what the source's does, bit for bit."""
    cfg, size = classifier(), 32
    scale = dict(adjust=dict(type='ParallelAdapter', rank=4), start='function', order='interpolate')
    if host == 'swin':
        scale, size = dict(scale, stages='all'), 64
        cfg['backbone'] = dict(type='ScaleNetSwin', arch=SWIN, img_size=size, window_size=2)
        cfg['neck'] = dict(type='mmpretrain.GlobalAveragePooling')
        cfg['head'] = dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=128)
    alone = dict(cfg, backbone=dict(cfg['backbone'], scale=dict(times=1, adjust=None)))
    state = build(alone).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'source.pth')
    distill = dict(checkpoint=str(tmp_path / 'source.pth'), layers=1.0)
    cfg |= dict(type='DistilledClassifier', distill=distill)
    student = MODELS.build(dict(cfg, backbone=dict(cfg['backbone'], scale=scale)))
    student.load_state_dict(state)
    with torch.no_grad():
        losses = student.eval().loss(torch.randn(2, 3, size, size), batch(2)[1])
    assert losses['loss'] > 0
    assert losses['loss_distill_logits'] == losses['loss_distill_layers'] == 0


def test_logits_of_every_cell_are_distilled_in_the_two_stage_swin_of_the_study(tmp_path):

    cfg = Config.fromfile(CONFIGS / 'demo' / 'rank_swin.py').model
    source = build(cfg, 1)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'source.pth')
    cfg.backbone.scale = dict(times=2, stages=(1,), adjust=dict(type='ParallelAdapter', rank=4))
    cfg.update(
        type='DistilledClassifier', distill=dict(checkpoint=str(tmp_path / 'source.pth'), logits=0.5, layers=1.0)
    )
    student = build(cfg, 2)
    images, ranks = torch.randn(2, 1, 32, 32), torch.randint(16, (2, 16))
    losses = student(images, ranks, mode='loss')
    with torch.no_grad():
        source.eval()
        mine, theirs = (net(images, mode='tensor').double() for net in (student, source))
    assert mine.shape == (2, 16, 16)
    found = losses['loss_distill_logits'].item()
    assert math.isclose(found, 0.5 * kl_by_hand(mine, theirs, 1), rel_tol=1e-4)
    plain = cfg.copy()
    plain.type = 'ImageClassifier'
    plain.pop('distill')
    other = build(plain)
    other.load_state_dict(student.state_dict())
    torch.testing.assert_close(losses['loss'], other(images, ranks, mode='loss')['loss'])


def test_the_teacher_is_in_no_part_or_copy_of_the_student_and_follows_its_dtype(source):
    _, file = source
    own = dict(init_cfg=dict(type='Pretrained', checkpoint='of_the_student.pth'))
    student = build(classifier(dict(checkpoint=file), **own))
    plain = build(classifier())
    images, samples = batch()
    torch.manual_seed(3)
    drawn = torch.get_rng_state()
    student.loss(images, samples)
    assert torch.equal(torch.get_rng_state(), drawn)  # building a teacher draws nothing
    teacher = student.teacher.network(next(student.parameters()))
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert [n for n, _ in student.named_modules()] == [n for n, _ in plain.named_modules()]
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert not {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    assert student.train().teacher.network(images) is teacher
    assert not teacher.training

    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert twin.teacher._network is None
        assert twin.loss(images, samples)['loss_distill_logits'] == student.loss(images, samples)['loss_distill_logits']
    student.double()
    losses = student.loss(images.double(), samples)
    assert losses['loss_distill_logits'].dtype == torch.float64
    assert student.teacher.network(images.double()) is teacher
    assert next(teacher.parameters()).dtype == torch.float64


def test_under_autocast_the_losses_are_those_of_single_precision_to_its_rounding(source):
    _, file = source
    student = build(classifier(dict(checkpoint=file, layers=1.0)), 1).eval()
    images, samples = batch()
    exact = student.loss(images, samples)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = student.loss(images, samples)
    for name in ('loss_distill_logits', 'loss_distill_layers'):
        assert rounded[name].dtype == torch.float32
        assert rounded[name] != exact[name]  # autocast was at work
        torch.testing.assert_close(rounded[name], exact[name], rtol=0.1, atol=0)


def test_another_architecture_may_teach_by_its_logits(tmp_path):
    wide = classifier(classes=5)
    wide['backbone'] = dict(
        type='VisionTransformer', arch=dict(embed_dims=48, num_layers=2, num_heads=2, feedforward_channels=96), **IMAGE
    )
    wide['head']['in_channels'] = 48
    teacher = build(wide, 1)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'wide.pth')
    student = build(classifier(dict(checkpoint=str(tmp_path / 'wide.pth'), model=wide)), 2)
    images, samples = batch()
    with torch.no_grad():
        target = teacher.eval()(images, mode='tensor')
        mine = student(images, mode='tensor')
    found = student.loss(images, samples)['loss_distill_logits']
    expected = kl_by_hand(mine.double(), target.double(), 1)
    assert math.isclose(found.item(), expected, rel_tol=1e-4)
    student = build(classifier(dict(checkpoint=str(tmp_path / 'wide.pth'), model=wide, layers=1.0)))
    with pytest.raises(ValueError, match=r"{'layers': 3}.*teacher, {}.*distill.layers=0"):
        student.loss(images, samples)


def test_ddp_reduces_the_students_gradients_without_unused_parameters(source, tmp_path):
    _, file = source
    cfg = classifier(dict(checkpoint=file, layers=1.0))
    cfg['distill']['logits'] = 0.0
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        alone = build(cfg)
        wrapped = DistributedDataParallel(copy.deepcopy(alone))
        data = batch()
        for _ in range(2):  # the second iteration would complain of unused ones
            for net in (alone, wrapped):
                net.zero_grad()
                losses = net(*data, mode='loss')
                assert losses.keys() == {'loss', 'loss_distill_layers'}
                sum(losses.values()).backward()
    finally:
        torch.distributed.destroy_process_group()
    for a, b in zip(alone.parameters(), wrapped.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


WRONG = (
    (None, r"distill must be a dict with a checkpoint.*type='ImageClassifier'"),
    (dict(logits=1.0), r'distill must be a dict with a checkpoint'),
    (dict(checkpoint=None), r"must name the teacher's file, got None"),
    (dict(checkpoint='x', weight=1), r"no key \['weight'\]; it takes.*'temperature'"),
    (dict(checkpoint='x', logits=True), r'distill.logits must be a finite number >= 0, got True'),
    (dict(checkpoint='x', logits=-1), r'distill.logits must be a finite number >= 0, got -1'),
    (dict(checkpoint='x', layers=math.inf), r'distill.layers must be a finite number'),
    (dict(checkpoint='x', layers='0.5'), r"distill.layers must be a finite number >= 0, got '0.5'"),
    (dict(checkpoint='x', temperature=0), r'distill.temperature.*must be > 0'),
    (dict(checkpoint='x', logits=0), r"both 0.*type='ImageClassifier'"),
    (dict(checkpoint='x', model='deit.py'), r'distill.model must be the config of a classifier'),
)


@pytest.mark.parametrize('distill, message', WRONG, ids=lambda x: '' if isinstance(x, str) else str(x))
def test_a_wrong_setting_is_refused_when_the_model_is_built(distill, message):
    init_default_scope('mmpretrain')
    cfg = dict(classifier(dict(checkpoint='x')), distill=distill)
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


def test_the_teacher_has_the_outputs_of_the_source(source):
    """A config that ``scalenet init`` wrote counts scaled layers: 5 is the last of six, 2 of the source's three."""
    _, file = source
    cfg = classifier(dict(checkpoint=file))
    cfg['backbone']['out_indices'] = 5
    student = build(cfg)
    losses = student.loss(*batch())
    assert losses['loss_distill_logits'].isfinite()
    teacher = student.teacher.network(next(student.parameters()))
    assert list(teacher.backbone.out_indices) == [2]


def test_a_network_that_is_not_scaled_must_name_its_teacher():
    init_default_scope('mmpretrain')
    cfg = classifier(dict(checkpoint='x'))
    cfg['backbone'] = dict(type='VisionTransformer', arch=DEIT, **IMAGE)
    with pytest.raises(ValueError, match=r'a VisionTransformer has none; .*distill.model'):
        MODELS.build(cfg)


def test_a_teacher_that_does_not_fit_is_refused_at_the_first_loss(source, tmp_path):
    _, file = source
    images, samples = batch()

    student = build(classifier(dict(checkpoint=str(tmp_path / 'none.pth'))))
    with pytest.raises(FileNotFoundError, match='model.distill.checkpoint=FILE'):
        student.loss(images, samples)

    student = build(classifier(dict(checkpoint=file), classes=4))
    with pytest.raises(CheckpointError, match=r'expected \(4, 32\), the file has \(5, 32\)'):
        student.loss(images, samples)

    torch.save(timm_vit(4).state_dict(), tmp_path / 'deeper.pth')
    student = build(classifier(dict(checkpoint=str(tmp_path / 'deeper.pth'))))
    with pytest.raises(CheckpointError, match=r'layers.3[\s\S]*distill.model'):
        student.loss(images, samples)

    deeper = classifier()
    deeper['backbone'].update(arch=dict(DEIT, num_layers=4), scale=dict(times=1, adjust=None))
    distill = dict(checkpoint=str(tmp_path / 'deeper.pth'), model=deeper, layers=1.0)
    with pytest.raises(ValueError, match=r"student, {'layers': 3}.*teacher, {'layers': 4}"):
        build(classifier(distill)).loss(images, samples)

    build(classifier(dict(distill, layers=0.0))).loss(images, samples)
    other = dict(classifier(dict(checkpoint=file, model=classifier(scale=dict(times=1, adjust=None)))))
    other['head']['num_classes'] = 4
    with pytest.raises(ValueError, match=r'student has \(3, 4\) and the teacher \(3, 5\)'):
        build(other).loss(*batch(classes=4))


# A run of the demo configs


def demo_config(digits, work_dir, name='scalenet_deit_digits') -> Config:
    cfg = Config.fromfile(CONFIGS / 'demo' / f'{name}.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.get('dataset', loader.dataset).data_root = str(digits)
        loader.update(batch_size=16, num_workers=0, persistent_workers=False)
    cfg.work_dir, cfg.log_level = str(work_dir), 'WARNING'
    return cfg


def digest(net) -> dict[str, str]:
    return {n: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for n, t in net.state_dict().items()}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Two iterations with mixup, accumulated gradients, EMA and deltas: (config, source file, teacher's digests,
    runner).
    """
    from scalenet_mm.experiments.data import make_demo_data

    folder = tmp_path_factory.mktemp('distilled')
    digits = make_demo_data(folder, ['imagenet'], train=38, val=19)['imagenet']
    source = build_model(demo_config(digits, folder, 'deit_digits'))
    perturb(source, std=0.02)
    base = folder / 'source.pth'
    torch.save(dict(state_dict=source.state_dict()), base)
    cfg = demo_config(digits, folder / 'w')
    cfg.model.update(
        type='DistilledClassifier',
        distill=dict(checkpoint=str(base), layers=0.5),
        train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)),
    )
    cfg.load_from = str(base)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
    cfg.param_scheduler = []
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5), dict(type='DeltaHook')]
    runner = build_runner(cfg)
    runner.train()
    DefaultScope._instance_dict.clear()
    return cfg, base, source, runner


def test_a_run_trains_the_increments_and_leaves_the_teacher_alone(run):
    cfg, _, source, runner = run
    for name in ('loss', 'loss_distill_logits', 'loss_distill_layers'):
        values, _ = runner.message_hub.get_scalar(f'train/{name}').data
        assert len(values) == 2
        assert (values > 0).all()
    teacher, theirs = runner.model.teacher._network, digest(source)
    assert digest(teacher) == theirs
    in_optimizer = {id(p) for g in runner.optim_wrapper.param_groups for p in g['params']}
    assert not in_optimizer & {id(p) for p in teacher.parameters()}
    start = build_model(cfg)
    start.load_state_dict(source.state_dict())
    after, before = dict(runner.model.named_parameters()), dict(start.named_parameters())
    frozen = {n for n, p in after.items() if not p.requires_grad}
    norms = {n for n, r in roles(start).items() if r == Role.NORM}
    assert all(torch.equal(after[n], before[n]) for n in frozen)
    assert not any(torch.equal(after[n], before[n]) for n in norms)


def test_checkpoint_and_delta_hold_the_student_alone_and_need_no_teacher_file(run, tmp_path):
    cfg, base, _, _ = run
    work = Path(cfg.work_dir)
    content = torch.load(work / 'epoch_1.pth', weights_only=False)
    plain = copy.deepcopy(cfg)
    plain.model.pop('distill')
    plain.model.type = 'ImageClassifier'
    assert content['state_dict'].keys() == build_model(plain).state_dict().keys()
    assert {k.removeprefix('module.') for k in content['ema_state_dict']} - {'steps'} == content['state_dict'].keys()

    moved = base.rename(tmp_path / 'moved.pth')  # the file that distill.checkpoint names is gone
    try:
        model = assemble(work / f'epoch_1{SUFFIX}', moved)
        assert type(model) is DistilledClassifier
        found = model.state_dict()
        assert found.keys() == content['state_dict'].keys()
        assert all(torch.equal(found[k], v) for k, v in content['state_dict'].items())

        scores = []
        for config in (cfg, plain):
            config = copy.deepcopy(config)
            config.update(load_from=str(work / 'epoch_1.pth'), experiment_name=f'test_{len(scores)}')
            config.custom_hooks = []
            scores.append(build_runner(config).test())
        assert scores[0] == scores[1]
    finally:
        moved.rename(base)


def test_preflight_names_a_teacher_file_that_is_not_there(run):
    cfg = copy.deepcopy(run[0])
    preflight(cfg)
    cfg.model.distill.checkpoint = 'nowhere/source.pth'
    with pytest.raises(SystemExit, match=r'model.distill.checkpoint: there is no checkpoint nowhere/source.pth'):
        preflight(cfg)
    preflight(cfg, ('test',))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_on_a_gpu_the_teacher_follows_the_student(source):
    _, file = source
    student = build(classifier(dict(checkpoint=file, layers=1.0)), 1).eval()
    images, samples = batch()
    on_cpu = student.loss(images, samples)
    on_gpu = student.cuda().loss(images.cuda(), [s.cuda() for s in samples])
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name].cpu(), value, rtol=1e-3, atol=1e-5)


def test_a_teacher_is_read_when_it_is_first_asked_for(tmp_path):
    teacher = Teacher(dict(classifier(scale=dict(times=1, adjust=None))), str(tmp_path / 'none.pth'))
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        teacher.network(torch.zeros(1))
