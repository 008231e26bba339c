"""Every backbone, neck and head on tensors that say they are on a GPU: torch refuses what lies on another device.

Nothing is computed and no GPU is needed: fake tensors have a shape, a dtype and a device. The backward pass would need
a real one.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.compat import configs_dir, read_config
from scalenet_mm.core.adapters import ParallelAdapter
from scalenet_mm.core.roles import TrainPolicy
from scalenet_mm.ops import blocks, linear, window

GPU = torch.device('cuda', 0)
CONFIGS = (
    'scalenet_swin_t_100e.py',
    'demo/scalenet_deit_micro_digits.py',
    'demo/mask_rcnn_scalenet_swin_digits.py',
    'demo/upernet_scalenet_swin_digits.py',
    'mask_rcnn_scalenet_deit_b_1x.py',
    'upernet_scalenet_deit_b_40k.py',
)


@pytest.fixture
def fake(monkeypatch) -> Iterator[Callable[[Tensor], Tensor]]:
    """Makes a tensor's stand-in on a GPU; the fast paths take it for an ordinary one."""
    mode = FakeTensorMode()

    def on_gpu(tensor: Tensor) -> Tensor:
        with unset_fake_temporarily():
            return FakeTensor(mode, tensor.detach().to('meta'), GPU)

    for module in (linear, blocks):
        monkeypatch.setattr(module, 'traced', lambda: False)
    monkeypatch.setattr(linear, 'ordinary', lambda *tensors: True)
    monkeypatch.setattr(window, 'image_layout', window.image_layout.__wrapped__)
    monkeypatch.setattr(window, 'layout', window.layout.__wrapped__)
    monkeypatch.setattr(blocks, 'layout', window.layout)
    # kept ones are told apart by their address
    monkeypatch.setattr(blocks, 'biases', lambda *given: window._biases_of(*given[:-1]))
    monkeypatch.setattr(linear, 'in_dtype', lambda tensor, dtype, deployed=False: tensor.detach().to(dtype))
    on_gpu.mode = mode
    before = torch.is_autocast_enabled('cuda')
    torch.set_autocast_enabled('cuda', True)  # torch.autocast turns itself off without a GPU
    yield on_gpu
    torch.set_autocast_enabled('cuda', before)
    torch.clear_autocast_cache()


def moved(model: nn.Module, fake: Callable) -> nn.Module:
    """A model with every tensor on the GPU, tied ones tied."""
    same: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = same.setdefault(id(p), nn.Parameter(fake(p), p.requires_grad))
        for name, b in module._buffers.items():
            module._buffers[name] = b if b is None else fake(b)
    return model


def outputs(model: nn.Module, images: Tensor) -> list:
    """What the parts of a model compute; proposals, whose number depends on values, are made up."""
    feats = model.extract_feat(images)
    if hasattr(model, 'roi_head'):
        heads, channels = model.roi_head, feats[0].shape[1]
        sizes = [e.roi_layers[0].output_size[0] for e in (heads.bbox_roi_extractor, heads.mask_roi_extractor)]
        boxes, masks = (images.new_zeros(5, channels, size, size) for size in sizes)
        return [feats, model.rpn_head(feats), heads.bbox_head(boxes), heads.mask_head(masks)]
    if hasattr(model, 'decode_head'):
        return [feats, model.decode_head(feats), model.auxiliary_head(feats)]
    return [feats, model.head(feats)]


def tensors(found) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for part in found for t in tensors(part)]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', CONFIGS)
def test_a_forward_pass_leaves_nothing_on_the_cpu(fake, name, train, monkeypatch):
    cfg = read_config(configs_dir() / name)
    cfg.model.backbone.drop_path_rate = 0.0  # which samples are kept is read from a tensor
    model = build_model(cfg)
    TrainPolicy().apply(model)  # frozen weights have a way of their own, beside trained ones
    model = moved(model, fake).train(train)
    if name == 'scalenet_swin_t_100e.py':  # torch's choice may plan each number of windows anew
        monkeypatch.delattr(torch.nn.functional, 'scaled_dot_product_attention')
    called, sides = [], (32, 32) if 'micro' in name else (224, 256)
    monkeypatch.setattr(linear, 'composed', lambda *args, real=linear.composed: called.append(1) or real(*args))
    with fake.mode, torch.set_grad_enabled(train):
        found = tensors(outputs(model, fake(torch.zeros(2, 3, *sides))))
    assert {t.device for t in found} == {GPU} and len(found) > 1
    assert called and {t.dtype for t in found} >= {torch.float16}  # by the fast path, under autocast


def test_an_adapter_left_on_the_cpu_is_refused(fake):
    """Breaks it on purpose."""
    model = build_model(read_config(configs_dir() / 'demo/scalenet_deit_micro_digits.py')).eval()
    adapter = next(m for m in model.modules() if isinstance(m, ParallelAdapter))
    left = dict(adapter.named_parameters())
    moved(model, fake)
    for name, p in left.items():
        owner, _, last = name.rpartition('.')
        with unset_fake_temporarily():
            mine = nn.Parameter(FakeTensor(fake.mode, p.detach().to('meta'), torch.device('cpu')))
        adapter.get_submodule(owner)._parameters[last] = mine
    with fake.mode, torch.no_grad(), pytest.raises(RuntimeError, match='cuda'):
        model.extract_feat(fake(torch.zeros(2, 3, 32, 32)))
