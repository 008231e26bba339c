"""Files that version 0.1.0 wrote (commit 5fc414d) load and give the outputs that it computed from them."""

from pathlib import Path

import pytest
import timm
import torch

from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetSwin
from scalenet_mm.checkpoint.live_delta import scale_by_delta

FILES = Path(__file__).parent / 'files_of_0_1_0'
SWIN = dict(embed_dims=4, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2])
DEIT = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)


def swin():
    scale = dict(times=2, stages=(2,), adjust=dict(type='ParallelAdapter', rank=2))
    return ScaleNetSwin(SWIN, window_size=2, pad_small_map=True, scale=scale)


def deit():
    scale = dict(times=2, adjust=dict(type='LoRA', rank=2))
    return ScaleNetDeiT(DEIT, img_size=32, patch_size=8, scale=scale)


def then(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The input, and what 0.1.0 made of it."""
    kept = torch.load(FILES / 'outputs.pth', weights_only=True)
    return kept['x'], kept[name]


@pytest.mark.parametrize('make', [swin, deit])
def test_a_checkpoint_gives_the_outputs_it_gave(make):
    x, expected = then(make.__name__)
    backbone = make().eval()
    backbone.load_pretrained(str(FILES / f'{make.__name__}.pth'))
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[-1], expected)


def test_a_delta_of_a_live_network_gives_the_outputs_it_gave():
    x, expected = then('live')
    sizes = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=3)
    model = timm.models.VisionTransformer(**sizes).eval()
    model.load_state_dict(torch.load(FILES / 'source.pth', weights_only=True))
    scale_by_delta(model, FILES / 'live.delta.safetensors')
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
