"""Decision 6: one rule gives every parameter its role, and freezing asks it."""

import copy

import pytest
import torch
from conftest import DEIT, SWIN, Encoder
from mmcv.cnn.bricks.drop import DropPath
from mmengine.registry import MODELS
from torch import nn

import scalenet_mm
from scalenet_mm import LayerMap, Role, TrainPolicy, scale_layers
from scalenet_mm.core.roles import count, roles, total


def swin_classifier(**backbone):
    torch.manual_seed(0)
    net = scalenet_mm.build('swin_t', num_classes=5, window_size=4, **backbone)
    return net


def test_every_parameter_has_one_role_by_what_holds_it():
    model = Encoder()
    model.layers = scale_layers(model.layers, LayerMap.build(3, 2, 'stack', layers=(0,)), dict(rank=2))
    model.head = nn.Linear(32, 2)
    found = roles(model)
    assert set(found) == {n for n, _ in model.named_parameters()}
    assert found['layers.0.linear1.weight'] is Role.SHARED
    assert found['layers.1.linear1.weight'] is Role.OUTER, 'used once'
    assert found['layers.3.norm1.weight'] is Role.NORM
    assert found['layers.3.linear2.adapter.up'] is Role.ADJUSTMENT
    assert found['head.weight'] is Role.OUTER
    assert 'layers.3.linear1.weight' not in found, 'its owner is instance 0'


def test_names_do_not_decide():
    class Odd(nn.Module):  # names that a substring test would fall for
        def __init__(self):
            super().__init__()
            self.adapter = nn.Linear(2, 2)
            self.norm1 = nn.Linear(2, 2)
            self.first = nn.LayerNorm(2)

    assert set(roles(Odd()).values()) == {Role.OUTER, Role.NORM}
    assert roles(Odd())['adapter.weight'] is Role.OUTER and roles(Odd())['first.weight'] is Role.NORM


def test_norms_of_a_head_are_not_increments():
    model = swin_classifier()
    model.head.bn = nn.BatchNorm1d(4)
    assert roles(model)['head.bn.weight'] is Role.OUTER
    assert roles(model)['backbone.norm3.weight'] is Role.NORM
    assert roles(model)['backbone.patch_embed.norm.weight'] is Role.NORM


def test_deit_b_trains_3_024_384_parameters():
    with torch.device('meta'):
        model = scalenet_mm.build('deit_b')
    TrainPolicy().apply(model)
    assert total(count(model).values()).trainable == 3_024_384


def test_a_half_precision_network_takes_a_head_in_full_precision():
    model = nn.ModuleDict(dict(net=Encoder().bfloat16(), head=nn.Linear(32, 2)))
    scalenet_mm.scale(model, adjust=dict(type='ParallelAdapter', rank=2))
    trained = TrainPolicy('increments', also=['head']).apply(model)
    assert {'head.weight', 'head.bias'} < set(trained)
    for layer in model['net'].layers:  # as ops=dict(weights='bfloat16') stores them: the increments are not
        layer.norm1.float()
    with pytest.raises(ValueError, match='steps are too coarse for updates'):
        TrainPolicy('all').apply(model)


def test_patterns_add_to_the_policy_by_whole_path_components():
    model = swin_classifier()
    names = TrainPolicy(also=['head.fc']).apply(model)
    assert {'head.fc.weight', 'head.fc.bias'} <= set(names)
    assert not model.backbone.patch_embed.projection.weight.requires_grad
    with pytest.raises(ValueError, match=r"'head.f' .* matches none"):
        TrainPolicy(also='head.f').apply(model)
    with pytest.raises(ValueError, match='increments'):
        TrainPolicy(train='adapters')
    everything = TrainPolicy('all').apply(model)
    assert set(everything) == {n for n, _ in model.named_parameters()}


def test_frozen_leaves_stay_in_eval_after_train():
    model = swin_classifier(drop_path_rate=0.5)
    model.head.bn, model.head.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)
    scores = model.head.fc
    model.head.fc = nn.Sequential(scores, model.head.bn, model.head.drop)
    TrainPolicy().apply(model)
    model.train()
    x, before = torch.randn(8, 768), model.head.bn.running_mean.clone()
    out = model.head.fc(x)
    assert torch.equal(model.head.bn.running_mean, before), 'statistics of a frozen BatchNorm do not move'
    assert torch.equal(out, model.head.fc(x)), 'frozen drop-out does not drop'
    images = torch.randn(2, 3, 128, 128)
    a, b = (model.backbone(images)[0] for _ in range(2))
    assert not torch.equal(a, b), 'drop path of the scaled network stays active'
    drops = [m for m in model.backbone.modules() if isinstance(m, DropPath)]
    assert drops and all(m.training for m in drops), 'also beside weights that are all frozen'
    TrainPolicy(also=['head']).apply(swin := swin_classifier())
    swin.train()
    swin.head.fc = nn.Sequential(swin.head.fc, nn.Dropout(0.5))
    TrainPolicy(also=['head']).apply(swin)
    swin.train()
    assert not torch.equal(swin.head.fc(x), swin.head.fc(x)), 'what is trained drops'


def test_a_teacher_that_the_model_froze_whole_stays_frozen():
    """As mmdet's SoftTeacher has one: it gets no gradient, and DDP would wait for it."""
    pair = nn.ModuleDict({name: MODELS.build(dict(type='ScaleNetDeiT', **SMALL)) for name in ('student', 'teacher')})
    pair['teacher'].requires_grad_(False)
    for policy in (TrainPolicy(), TrainPolicy('adjustments'), TrainPolicy('all'), TrainPolicy()):
        trained = policy.apply(pair)
        assert trained and not [name for name in trained if name.startswith('teacher')]
    assert any(n.startswith('teacher') for n in TrainPolicy(also=['teacher.layers.0.ln1']).apply(pair))
    alone = nn.ModuleDict(dict(backbone=MODELS.build(dict(type='ScaleNetDeiT', **SMALL)))).requires_grad_(False)
    assert TrainPolicy().apply(alone), 'a frozen network alone gets its increments trained'


SMALL = dict(arch=DEIT, img_size=32, patch_size=8)


def test_counts_are_of_unique_parameters():
    model = MODELS.build(dict(type='ScaleNetDeiT', arch=DEIT, img_size=32, patch_size=8))
    counts = count(model)
    assert total(counts.values()).params == sum(p.numel() for p in model.parameters())
    d, h = DEIT['embed_dims'], DEIT['feedforward_channels']
    block = 4 * d * d + 4 * d + 2 * d * h + d + h
    assert counts[Role.SHARED].params == 3 * block and counts[Role.SHARED].uses == 6 * block
    assert counts[Role.ADJUSTMENT].params == 6 * 2 * 16 * (d + h)
    assert counts[Role.NORM].params == (6 * 2 + 1) * 2 * d
    swin = MODELS.build(dict(type='ScaleNetSwin', arch=SWIN, window_size=4))
    assert total(count(swin).values()).params == sum(p.numel() for p in swin.parameters())


def test_a_policy_replaces_an_earlier_one_whole():
    model = swin_classifier()
    model.head.bn, model.head.drop = nn.BatchNorm1d(5), nn.Sequential(nn.Dropout(0.5))
    TrainPolicy().apply(model)
    TrainPolicy('all').apply(model)
    model.train()
    model.head.drop(torch.zeros(1)), model.head.bn(torch.randn(4, 5))
    assert model.head.bn.training and model.head.drop[0].training
    with pytest.raises(ValueError, match="no key .'trian'."):
        TrainPolicy.from_cfg(dict(trian='all'))


@pytest.mark.parametrize(
    ('pattern', 'meant'),
    [
        ('roi_head.bbox_head.fc_clss', 'roi_head.bbox_head.fc_cls'),  # misspelt
        ('fc_cls', 'roi_head.bbox_head.fc_cls'),  # without what it is in
        ('roi_head.bbox_head.fc_reg.wieght', 'roi_head.bbox_head.fc_reg.weight'),
        ('roi_hed.bbox_head.fc_*', 'roi_head.bbox_head.fc_reg'),
        ('nothing.like.it', 'neck'),  # then the outermost modules
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest_parameters(pattern, meant):
    last = nn.ModuleDict(dict(fc_cls=nn.Linear(2, 2), fc_reg=nn.Linear(2, 2)))
    roi_head = nn.ModuleDict(dict(bbox_head=last))
    model = nn.ModuleDict(dict(neck=nn.Linear(2, 2), roi_head=roi_head))
    with pytest.raises(ValueError, match='matches none') as e:
        TrainPolicy(also=[pattern]).trainable(model)
    assert repr(meant) in str(e.value).partition('Nearest in this model: ')[2]


class Partly(nn.Module):
    """A scaled backbone, an encoder that the model froze, and a neck of which it froze the first half."""

    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(dict(type='ScaleNetDeiT', arch=DEIT, img_size=32, patch_size=8))
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).requires_grad_(False)
        self.neck = nn.ModuleDict(dict(fixed=nn.Linear(2, 2).requires_grad_(False), free=nn.Linear(2, 2)))


ENCODER, FIXED = (
    {f'encoder.{i}.{kind}' for i in (0, 1) for kind in ('weight', 'bias')},
    {'neck.fixed.weight', 'neck.fixed.bias'},
)


@pytest.mark.parametrize(
    ('policy', 'besides'),
    [
        (dict(train='all'), set()),
        (dict(train='all', also=['encoder']), ENCODER),
        (dict(train='all', also=['neck']), set()),  # names more than what is frozen in it
        (dict(train='increments', also=['neck']), set()),
        (dict(train='increments', also=['neck.fixed', 'encoder.1']), FIXED | {'encoder.1.weight', 'encoder.1.bias'}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else f'{len(value)} besides',
)
def test_what_the_model_froze_stays_frozen_unless_a_policy_names_it(policy, besides):
    model = Partly()
    names = set(TrainPolicy(**policy).apply(model))
    assert names & (ENCODER | FIXED) == besides
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert 'neck.free.weight' in names or not {'all', 'neck'} & {policy['train'], *policy.get('also', ())}
    assert set(TrainPolicy(**policy).apply(copy.deepcopy(model))) == names, 'a second time, and on a copy'
    TrainPolicy('adjustments').apply(model)
    assert set(TrainPolicy('all').apply(model)) == {n for n, _ in model.named_parameters()} - ENCODER - FIXED | besides


def test_increments_are_trained_in_a_network_that_its_user_froze_first():
    model = Partly().requires_grad_(False)
    chosen = {n for n, r in roles(model).items() if r in (Role.ADJUSTMENT, Role.NORM)}
    assert set(TrainPolicy(also=['neck.free']).apply(model)) == chosen | {'neck.free.weight', 'neck.free.bias'}


def test_statistics_and_drop_out_of_what_the_model_froze_are_its_own_business():
    model, x = Partly(), torch.randn(8, 2)
    TrainPolicy('all').apply(model)
    model.train()
    model.encoder(x)
    assert model.encoder[1].training and model.encoder[2].training, 'as without a policy'
    TrainPolicy().apply(model)
    model.train()
    model.encoder(x)
    assert not model.encoder[1].training and not model.encoder[2].training, 'all of it is frozen by the policy as well'
