"""What the libraries test of their own Swin and ViT, restated, on their classes and on ours: python tests/neighbours.py

No library ships its tests in its package. A check that a library's own class fails here is not counted against ours.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mmdet.models.backbones.swin as det
import mmpretrain.models.backbones as cls
import mmseg.models.backbones as seg
import timm
import torch
from mmengine.runner import load_checkpoint, save_checkpoint
from timm.optim import param_groups_layer_decay
from torch import nn

import scalenet_mm
from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin

SWIN = dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4])
DEIT = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
OUTPUTS = dict(window_size=4, out_indices=(0, 1, 2, 3))
CHECKS: dict[str, list[Callable]] = {'backbone': [], 'swin': [], 'vit': [], 'timm': []}
Make = Callable[..., nn.Module]  # of a class, with the arguments that are its library's


@dataclass(frozen=True)
class Class:
    """A library's class.

    Attributes:
        kinds: of checks.
        host: makes one of the library's own.
        ours: makes one of ours, of these times.
    """

    kinds: tuple[str, ...]
    host: Make
    ours: Callable[[int], Make]


def registered(host: type, ours: type, **given) -> tuple[Make, Callable[[int], Make]]:
    def scaled(times: int) -> Make:
        scale = dict(times=times, adjust=None) if times == 1 else dict(times=times)
        return lambda **kw: ours(**{**given, **kw}, scale=scale)

    return lambda **kw: host(**{**given, **kw}), scaled


def live(name: str, **given) -> tuple[Make, Callable[[int], Make]]:
    def host(**kw) -> nn.Module:
        return timm.create_model(name, num_classes=5, **{**given, **kw})

    return host, lambda times: lambda **kw: scalenet_mm.scale(host(**kw), times=times)


DENSE = dict(window_size=4, **SWIN)
VIT = dict(embed_dim=32, num_heads=2, depth=3, img_size=32, patch_size=8)
CLASSES = {
    'mmpretrain Swin': Class(
        ('backbone', 'swin'),
        *registered(cls.SwinTransformer, ScaleNetSwin, arch=SWIN, img_size=64, pad_small_map=True, **OUTPUTS),
    ),
    'mmdet Swin': Class(('backbone',), *registered(det.SwinTransformer, ScaleNetSwin, **DENSE)),
    'mmseg Swin': Class(('backbone',), *registered(seg.SwinTransformer, ScaleNetSwin, **DENSE)),
    'mmpretrain ViT': Class(
        ('backbone', 'vit'),
        *registered(cls.VisionTransformer, ScaleNetDeiT, arch=DEIT, img_size=64, patch_size=16, out_type='featmap'),
    ),
    'mmseg ViT': Class(
        ('backbone',),
        *registered(
            seg.VisionTransformer,
            ScaleNetDeiT,
            **dict(img_size=64, embed_dims=32, num_layers=3, num_heads=2, mlp_ratio=2, final_norm=True),
        ),
    ),
    'timm ViT': Class(('timm',), *live('vit_tiny_patch16_224', **VIT)),
    'timm Swin': Class(
        ('timm',),
        *live(
            'swin_tiny_patch4_window7_224', img_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(1, 2)
        ),
    ),
}


def check(kind: str) -> Callable[[Callable], Callable]:
    def add(test: Callable) -> Callable:
        CHECKS[kind].append(test)
        return test

    return add


def images(side: int = 64, other: int | None = None) -> torch.Tensor:
    return torch.randn(2, 3, side, other or side, generator=torch.Generator().manual_seed(0))


@check('backbone')
def gives_one_map_for_each_output_at_sizes_that_are_no_multiple_of_a_patch(make: Make) -> None:
    net = make()
    net.init_weights()
    for size in ((64, 64), (67, 93)):
        outs = net(images(*size))
        assert isinstance(outs, (tuple, list)) and len(outs) == len(net.out_indices)
        assert all(out.ndim == 4 and out.shape[0] == 2 and out.isfinite().all() for out in outs)


@check('backbone')
def every_parameter_gets_a_gradient(make: Make) -> None:
    net = make()
    net.train()
    sum(out.square().mean() for out in net(images())).backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]


@check('backbone')
def a_checkpoint_of_mmengine_comes_back(make: Make) -> None:
    first, second = make(), make()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / 'a.pth')
        save_checkpoint(dict(state_dict=first.state_dict(), meta={}), file)
        load_checkpoint(second, file, strict=True, map_location='cpu')
    for net in (first, second):
        net.eval()
    assert all(map(torch.equal, first(images()), second(images())))


@check('backbone')
def train_and_eval_reach_every_module(make: Make) -> None:
    net = make()
    for mode in (True, False):
        net.train(mode)
        assert all(m.training is mode for m in net.modules())


@check('backbone')
def an_unknown_argument_is_refused(make: Make) -> None:
    refused(TypeError, lambda: make(no_such_argument=1))


def refused(kinds, call: Callable) -> None:
    try:
        call()
    except kinds:
        return
    raise AssertionError('it was not refused')


@check('swin')
def swin_takes_names_of_architectures_and_dicts_with_all_keys(make: Make) -> None:
    refused((AssertionError, ValueError), lambda: make(arch='unknown'))
    refused((AssertionError, ValueError), lambda: make(arch=dict(embed_dims=16, num_heads=[1])))
    assert make(arch='t').embed_dims == 96


@check('swin')
def swin_shrinks_its_maps_by_two_a_stage(make: Make) -> None:
    outs = make()(images(64))
    assert [tuple(o.shape[1:]) for o in outs] == [(16 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    after = make(out_after_downsample=True, out_indices=(0,))(images(64))
    assert tuple(after[0].shape[1:]) == (32, 8, 8)


@check('swin')
def swin_draws_and_resizes_its_absolute_position_embedding(make: Make) -> None:
    net = make(use_abs_pos_embed=True)
    assert not net.absolute_pos_embed.any()
    net.init_weights()
    assert net.absolute_pos_embed.any()
    larger = make(use_abs_pos_embed=True, img_size=96)
    larger.load_state_dict(net.state_dict())
    assert larger.absolute_pos_embed.shape[1] == 24 * 24


@check('swin')
def swin_drops_paths_in_proportion_to_the_depth(make: Make) -> None:
    net = make(drop_path_rate=0.3)
    rates = [float(block.attn.drop.drop_prob) for stage in net.stages for block in stage.blocks]
    assert all(abs(rate - 0.3 * i / (len(rates) - 1)) < 1e-6 for i, rate in enumerate(rates))


@check('swin')
@check('vit')
def every_parameter_has_a_layer_depth(make: Make) -> None:
    net = make()
    found = {name: net.get_layer_depth(name) for name, _ in net.named_parameters()}
    number = {n for _, n in found.values()}
    assert len(number) == 1 and all(0 <= depth < n for depth, n in found.values())


@check('vit')
def vit_gives_each_type_of_output(make: Make) -> None:
    shapes = dict(raw=(2, 17, 32), cls_token=(2, 32), featmap=(2, 32, 4, 4), avg_featmap=(2, 32))
    for out_type, shape in shapes.items():
        assert tuple(make(out_type=out_type)(images())[-1].shape) == shape
    refused((AssertionError, ValueError), lambda: make(out_type='unknown'))
    refused((AssertionError, ValueError), lambda: make(out_type='cls_token', with_cls_token=False))


@check('vit')
def vit_gives_the_outputs_of_several_layers(make: Make) -> None:
    assert len(make(out_indices=[0, 1, -1])(images())) == 3
    refused((AssertionError, ValueError), lambda: make(out_indices=[0, 99]))
    refused((AssertionError, ValueError), lambda: make(out_indices={1: 1}))


@check('vit')
def vit_resizes_its_position_embedding(make: Make) -> None:
    net = make()
    assert not net.pos_embed.any()
    net.init_weights()
    larger = make(img_size=96)
    larger.load_state_dict(net.state_dict())
    assert larger.pos_embed.shape[1] == 6 * 6 + 1


@check('timm')
def timm_forward_features_and_head_make_the_forward(make: Make) -> None:
    net = make().eval()
    x = images(32)
    assert net(x).shape == (2, 5)
    assert torch.equal(net.forward_head(net.forward_features(x)), net(x))
    assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, net.num_features)


@check('timm')
def timm_resets_its_classifier(make: Make) -> None:
    net = make()
    net.reset_classifier(0)
    assert net(images(32)).shape[1] == net.num_features
    net.reset_classifier(7)
    assert net(images(32)).shape == (2, 7) and isinstance(net.get_classifier(), nn.Linear)


@check('timm')
def timm_keeps_its_default_cfg(make: Make) -> None:
    cfg = make().default_cfg
    params = dict(make().named_parameters())
    assert cfg['first_conv'] + '.weight' in params and cfg['classifier'] + '.weight' in params
    assert cfg['architecture'] and len(cfg['input_size']) == 3


@check('timm')
def timm_checkpoints_its_gradients(make: Make) -> None:
    net = make()
    net.set_grad_checkpointing()
    net(images(32)).mean().backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]


@check('timm')
def timm_gives_intermediates(make: Make) -> None:
    net = make().eval()
    final, several = net.forward_intermediates(images(32))
    assert final.isfinite().all() and len(several) >= 2 and all(f.ndim == 4 for f in several)
    if hasattr(net, 'get_intermediate_layers'):
        (last,) = net.get_intermediate_layers(images(32), n=1, norm=True)
        assert torch.equal(last, net.forward_features(images(32))[:, net.num_prefix_tokens :])


@check('timm')
def timm_prunes_its_later_layers(make: Make) -> None:
    net = make().eval()
    kept = net.prune_intermediate_layers([0], prune_head=True)
    assert net.forward_features(images(32)).isfinite().all() and kept


@check('timm')
def timm_groups_its_parameters(make: Make) -> None:
    net = make()
    assert set(net.group_matcher(coarse=False)) >= {'stem', 'blocks'}
    groups = param_groups_layer_decay(net)
    assert sum(len(g['params']) for g in groups) == len(list(net.parameters()))


def run() -> dict[tuple[str, str], tuple[str, str, str]]:
    """(class, check) -> what the host's, ours at times=1 and ours at times=2 gave: '' or the error."""
    found = {}
    for name, tested in CLASSES.items():
        for kind in tested.kinds:
            for test in CHECKS[kind]:
                makes = tested.host, tested.ours(1), tested.ours(2)
                found[name, test.__name__] = tuple(map(lambda make, test=test: _error(test, make), makes))
    return found


def _error(test: Callable, make: Make) -> str:
    torch.manual_seed(0)
    try:
        test(make)
    except Exception as e:
        return f'{type(e).__name__}: {e}'
    return ''


if __name__ == '__main__':
    logging.disable()  # mmengine lists every tensor that is initialised
    failed = 0
    for (name, test), (host, *ours) in run().items():
        bad = [e for e in ours if e]
        failed += bool(bad and not host)
        print(f'{name:16} {test:75} {"not counted, the host fails" if host else bad or "ok"}')
    sys.exit(failed > 0)
