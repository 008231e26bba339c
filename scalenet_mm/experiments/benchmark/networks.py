"""Our networks and the installed packages' own, of equal depth and with equal weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones import ScaleNetDeiT, ScaleNetSwin
from ...core.adapters import AdaptedLinear, Adjustment
from ...core.roles import TrainPolicy, declare_frozen
from ...ops import set_ops
from .parity import Net
from .settings import Settings

Depths = Sequence[int]


def our_swin(s: Settings, name: str, pyramid: bool = False, **scale) -> ScaleNetSwin:
    """The paper's scaled Swin, frozen to its increments; with ``pyramid`` as detectors use it."""
    host = dict(window_size=s.at.window, drop_path_rate=0.0)
    if pyramid:
        host |= dict(out_indices=(0, 1, 2, 3), pad_small_map=True)
    return _ready(s, ScaleNetSwin(dict(s.at.archs[name]), scale=scale, **host))


def our_deit(s: Settings, name: str, drop_path_rate: float = 0.0, **scale) -> ScaleNetDeiT:
    """The paper's scaled DeiT, frozen to its increments."""
    host = dict(img_size=s.at.image, drop_path_rate=drop_path_rate)
    return _ready(s, ScaleNetDeiT(dict(s.at.archs[name]), scale=scale, **host))


def _ready(s: Settings, backbone: nn.Module) -> nn.Module:
    TrainPolicy().apply(backbone)
    return set_ops(randomised(backbone).to(s.device), s.our_ops())


def mmdet_swin(s: Settings, name: str, depths: Depths) -> nn.Module:
    from mmdet.models.backbones.swin import SwinTransformer

    arch = dict(s.at.archs[name], depths=depths)
    return SwinTransformer(window_size=s.at.window, drop_path_rate=0.0, **arch)


def mmpretrain_vit(s: Settings, name: str, depths: Depths) -> nn.Module:
    from mmpretrain.models.backbones import VisionTransformer

    (depth,) = depths
    return VisionTransformer(dict(s.at.archs[name], num_layers=depth), img_size=s.at.image)


def timm_swin(s: Settings, name: str, depths: Depths, fused: bool = False) -> nn.Module:
    """timm's Swin without classifier; ``fused`` is what ``TIMM_FUSED_ATTN=2`` chooses."""
    from timm.layers import set_fused_attn
    from timm.layers.config import use_fused_attn
    from timm.models.swin_transformer import SwinTransformer

    arch = s.at.archs[name]
    before = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(True, experimental=fused)
    try:
        return SwinTransformer(
            img_size=s.at.image,
            num_classes=0,
            embed_dim=arch['embed_dims'],
            depths=tuple(depths),
            num_heads=arch['num_heads'],
            window_size=s.at.window,
            drop_path_rate=0.0,
        )
    finally:
        set_fused_attn(*before)


def timm_vit(s: Settings, name: str, depths: Depths) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    arch = s.at.archs[name]
    return VisionTransformer(
        img_size=s.at.image, num_classes=0, embed_dim=arch['embed_dims'], depth=depths[0], num_heads=arch['num_heads']
    )


def deep_peer(
    build: Callable[[Depths], nn.Module], ours: nn.Module, containers: Sequence[str], device: str = 'cpu'
) -> nn.Module:
    """A stock network at the scaled depth with the weights of ``ours``, which loads the stock one of the source's
    depth.

    Args:
        build: makes a stock network of the depths.
        containers: where its blocks are, in the order of ours.
    """
    maps = list(ours.layer_maps().values())
    source = randomised(build([m.depth for m in maps])).state_dict()
    ours.load_state_dict(source)
    state = dict(source)
    for name, layer_map in zip(containers, maps, strict=True):
        blocks = {k: state.pop(k) for k in source if k.startswith(f'{name}.')}
        for i, layer in enumerate(layer_map.sources):
            start = f'{name}.{layer}.'
            of_layer = {k.removeprefix(start): v for k, v in blocks.items() if k.startswith(start)}
            state |= {f'{name}.{i}.{k}': v for k, v in of_layer.items()}
        # what lies beside the blocks under the same name stays
        state |= {k: v for k, v in blocks.items() if not k[len(name) + 1].isdecimal()}
    deep = build([len(m) for m in maps])
    deep.load_state_dict(state)
    deep.train()
    return deep.to(device)


MM_STAGES = [f'stages.{i}.blocks' for i in range(4)]
TIMM_STAGES = [f'layers.{i}.blocks' for i in range(4)]


def beside_mmdet(s: Settings, name: str) -> tuple[Net, nn.Module]:
    """Our Swin as detectors use it, and mmdet's of equal depth and weights."""
    ours = our_swin(s, name, pyramid=True)
    return Net(ours), deep_peer(functools.partial(mmdet_swin, s, name), ours, MM_STAGES, s.device)


class PlainAdapted(nn.Linear):
    """W x + b + B gelu(A x), as one would write it."""

    def forward(self, x: Tensor) -> Tensor:
        z = F.gelu(F.linear(x, self.adapter.down))
        return super().forward(x) + F.linear(z, self.adapter.up)


def give_plain_adapters(peer: nn.Module, ours: nn.Module) -> nn.Module:
    """Plain adapters with our values on the linears of the same names; trains what ours trains."""
    for name, module in ours.named_modules():
        if isinstance(module, AdaptedLinear) and module.adapter is not None:
            linear = peer.get_submodule(name)
            linear.__class__ = PlainAdapted
            linear.adapter = nn.Module()
            for part in ('down', 'up'):
                value = getattr(module.adapter, part).detach().clone()
                linear.adapter.register_parameter(part, nn.Parameter(value))
    trained = {n for n, p in ours.named_parameters() if p.requires_grad}
    for name, p in peer.named_parameters():
        p.requires_grad_(name in trained)
    return peer


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of a usual scale, none trivial: biases, tables and norms included."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator).to(p.device)
        if name.endswith(('bias_table', 'pos_embed', 'cls_token')):
            p.copy_(0.5 * noise)
        elif p.ndim == 1:
            p.copy_(0.1 * noise + name.endswith('weight'))
        else:
            p.copy_(0.5 * noise / p[0].numel() ** 0.5)
    return model


@torch.no_grad()
def zero_adapters(model: nn.Module) -> None:
    """An adapter's B is zero at the start of a training: then ours is the plain deep network."""
    for module in model.modules():
        if isinstance(module, Adjustment):
            module.up.zero_()


def plain(net: Net) -> Net:
    """The same network with every switch at its reference, stored in fp32 (the host's Swin cannot compute in bf16)."""
    return Net(set_ops(copy.deepcopy(net.model).float(), 'plain'), net.head, net.rename)


def in_fp32(net: Net) -> Net:
    """The same network, stored in fp32."""
    return Net(copy.deepcopy(net.model).float(), net.head, net.rename)


def switched(net: Net, ops: Mapping) -> Net:
    model = set_ops(copy.deepcopy(net.model), ops)
    declare_frozen(model)
    return Net(model, net.head, net.rename)


def compiled(net: Net) -> Net:
    """The peer's other public setting: the whole network through torch.compile."""
    return Net(net.model, net.head, net.rename, torch.compile(net.model))
