"""Small hosts that the tests share, and one way to make weights that are nowhere trivial."""

import ctypes
import gc
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import scalenet_mm  # noqa: F401 - before mmpretrain: with transformers 5 it makes it importable

# isort: split
from mmengine.model import ModuleList
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones.swin_transformer import SwinBlockSequence
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import nn
from yapf.yapflib import yapf_api

ROOT = Path(__file__).parents[1]


def _remembered(format_code):
    """yapf's, which a run calls with one text for each log and checkpoint: a fifth of the seconds of such tests."""
    known = {}

    def remember(code, **options):
        key = (code, repr(options))
        if key not in known:
            known[key] = format_code(code, **options)
        return known[key]

    return remember


yapf_api.FormatCode = _remembered(yapf_api.FormatCode)


def scalenet(*words) -> list[str]:
    """The command line, as a user calls it in a checkout."""
    return [sys.executable, '-m', 'scalenet_mm', *map(str, words)]


def in_two_processes(*words) -> list[str]:
    """torchrun's command line for a script, or for ``-m MODULE``, with its arguments."""
    here = ['--nproc-per-node=2', '--rdzv-backend=c10d', '--rdzv-endpoint=localhost:0']
    return [sys.executable, '-m', 'torch.distributed.run', *here, *map(str, words)]


SWIN = dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4])
DEIT = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)


@torch.no_grad()
def perturb(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Moves every parameter, norms, biases and zero-initialised adjustments included."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.add_(torch.randn(p.shape, generator=generator) * std)
    return module


def timm_vit(depth: int = 3) -> nn.Module:
    import timm

    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=depth, num_heads=2, mlp_ratio=2, num_classes=5
    )


class Encoder(nn.Module):
    """A plain stack of torch's encoder layers."""

    def __init__(self, depth: int = 3):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).layers

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class VitLayers(nn.Module):
    """mmpretrain's blocks alone: its VisionTransformer counts its depth when it is built (the backbone's business)."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.layers = ModuleList(TransformerEncoderLayer(32, 2, 64) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class SwinStage(SwinBlockSequence):
    def forward(self, x):
        return super().forward(x, (4, 4))[0]


def mm_swin_stage(depth: int = 3) -> nn.Module:
    return SwinStage(32, depth, num_heads=2, window_size=2)


IMAGE, TOKENS = (2, 3, 32, 32), (2, 16, 32)
# name -> (makes a model of a depth, name of its container of blocks, shape of an input)
LIVE_HOSTS = {
    'mmpretrain ViT': (VitLayers, 'layers', TOKENS),
    'mmpretrain Swin': (mm_swin_stage, 'blocks', TOKENS),
    'timm ViT': (timm_vit, 'blocks', IMAGE),
    'torch encoder': (Encoder, 'layers', TOKENS),
}


@pytest.fixture(params=LIVE_HOSTS)
def live_host(request):
    """(model in eval mode with weights nowhere trivial, container's name, input)."""
    make, container, shape = LIVE_HOSTS[request.param]
    torch.manual_seed(0)
    model = perturb(make())
    model.eval()  # mmpretrain's returns None
    return model, container, torch.randn(shape)


def deep_copy_of(model: nn.Module, container: str, sources) -> nn.Module:
    """The plain deep net as its host builds it: independent copies of the source's blocks in the map's order."""
    make = next(make for make, _, _ in LIVE_HOSTS.values() if type(make()) is type(model))
    deep = filled(make(len(sources)), model, {container: sources})
    deep.train(model.training)
    return deep


def filled(deep: nn.Module, source: nn.Module, maps) -> nn.Module:
    """A deep net with the source's weights, those of each container (by name) copied for every instance of a layer."""
    given = {}
    for key, value in source.state_dict().items():
        name = next((c for c in maps if key.startswith(f'{c}.')), None)
        if name is None:
            given[key] = value
            continue
        layer, rest = key[len(name) + 1 :].split('.', 1)
        stem = layer.rstrip('0123456789')  # torchvision's encoder_layer_0
        given |= {f'{name}.{stem}{i}.{rest}': value for i, s in enumerate(maps[name]) if f'{stem}{s}' == layer}
    deep.load_state_dict(given)
    return deep


def first(output):
    return output[0] if isinstance(output, (tuple, list)) else output


@pytest.fixture(autouse=True)
def _each_test_alone(request):
    """Fixed seeds, no default scope of mmengine's, and environment variables as no other test has left them.

    Of all three generators: what a shipped pipeline does to an image (posterizing it to no bits at all among it) is
    drawn from `random` and numpy. Cleared before a test as well as after it: what a module's or session's fixture left
    (a Runner sets the scope) was there before this one ran.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    for name in ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'LOCAL_RANK'):  # the second by a call of the training command
        os.environ.pop(name, None)
    DefaultScope._instance_dict.clear()
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    DefaultScope._instance_dict.clear()
    if request.node.get_closest_marker('slow'):
        gc.collect()  # mmpretrain's backbones are in reference cycles; those of a test of whole models are gigabytes,
        ctypes.CDLL(None).malloc_trim(0)  # which glibc keeps


def decoded(rle: dict) -> np.ndarray:
    """The (H, W) bool mask of COCO's uncompressed run lengths, as pycocotools reads them."""
    from pycocotools import mask

    return mask.decode(mask.frPyObjects(rle, *rle['size'])).astype(bool)
