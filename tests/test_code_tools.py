"""Tools that read or rewrite the code of a network: on a scaled one as on the host of its depth, or refused by name.

``scalenet experiment host-table`` runs these tests and writes what they proved into docs/hosts.md.
"""

import copy
import json
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import DEIT, perturb
from host_zoo import ZOO
from mmpretrain.models import SwinTransformer, VisionTransformer
from test_hosts import NONE, REFUSED, YES, result, table_rows, versions
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import scalenet_mm
from scalenet_mm.backbones import ScaleNetDeiT, ScaleNetHF, ScaleNetSwin, ScaleNetTimm
from scalenet_mm.core.adapters import AdaptedLinear
from scalenet_mm.core.tying import scaled_layers, ties

SWIN = dict(embed_dims=16, depths=[1, 2], num_heads=[1, 2])
DEEP_SWIN, DEEP_DEIT = {**SWIN, 'depths': [1, 4]}, {**DEIT, 'num_layers': 6}
SEEN = dict(img_size=32, patch_size=8)
PADDED = dict(window_size=4, pad_small_map=True, out_indices=(1,))
TIMM = dict(model_name='vit_tiny_patch16_224', embed_dim=32, num_heads=2, **SEEN)
DINO = dict(model_type='dinov2', hidden_size=32, num_attention_heads=2, image_size=32, patch_size=8)


def live(name: str) -> tuple[Callable, Callable]:
    """A host of the zoo at the scaled depth, and scaled."""
    zoo = ZOO[name]
    *rest, last = zoo.depths
    return lambda: zoo.make((*rest, 2 * last)), lambda: scalenet_mm.scale(zoo.make(zoo.depths))


NETWORKS = {  # row of the table -> the host at the scaled depth, the scaled network, size of an image
    'ScaleNetSwin': (
        lambda: SwinTransformer(DEEP_SWIN, **PADDED),
        lambda: ScaleNetSwin(SWIN, scale=dict(stages=(1,)), **PADDED),
        32,
    ),
    'ScaleNetDeiT': (lambda: VisionTransformer(DEEP_DEIT, **SEEN), lambda: ScaleNetDeiT(DEIT, **SEEN), 32),
    'ScaleNetTimm': (
        lambda: ScaleNetTimm(**TIMM, depth=6, scale=dict(times=1, adjust=None)),
        lambda: ScaleNetTimm(**TIMM, depth=3),
        32,
    ),
    'ScaleNetHF': (
        lambda: ScaleNetHF(dict(DINO, num_hidden_layers=6), scale=dict(times=1, adjust=None)),
        lambda: ScaleNetHF(dict(DINO, num_hidden_layers=3)),
        32,
    ),
    'timm ViT': (*live('timm ViT'), 32),
    'timm Swin': (*live('timm Swin'), 56),
    'Hugging Face ViT': (*live('Hugging Face ViT'), 32),
}


def compiled(model: nn.Module, x: Tensor) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, backend='aot_eager')


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def linears(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def prune_half(linear: nn.Module) -> None:
    prune.l1_unstructured(linear, 'weight', 0.5)


def halve(linear: nn.Module) -> None:
    parametrize.register_parametrization(linear, 'weight', Halved())


READ: dict[str, tuple[str, Callable]] = {  # column -> what it is, what makes a network of a network
    'fx': ('`torch.fx.symbolic_trace`', lambda m, x: torch.fx.symbolic_trace(m)),
    'script': ('`torch.jit.script`', lambda m, x: torch.jit.script(m)),
    'trace': ('`torch.jit.trace`', lambda m, x: torch.jit.trace(m, x, check_trace=False)),
    'export': ('`torch.export`', lambda m, x: torch.export.export(m, (x,)).module()),
    'compile': ('`torch.compile`', compiled),
}
REWRITE = {  # column -> what it is, what puts it on a linear layer, what takes it off
    'prune': ('`torch.nn.utils.prune`, put on every linear layer and removed', prune_half, prune.remove),
    'parametrize': (
        '`torch.nn.utils.parametrize`, put on every linear layer and removed',
        halve,
        parametrize.remove_parametrizations,
    ),
}
TOOLS = {name: text for name, (text, *_) in (READ | REWRITE).items()}
BEGIN = '<!-- table of tools: scalenet experiment host-table -->'
CELLS: dict[str, dict[str, str]] = {}


def _tell(name: str, tool: str, cell: str) -> None:
    """Writes a cell of the table and holds it against the documentation's."""
    CELLS.setdefault(name, {})[tool] = cell
    if 'SCALENET_TOOL_CELLS' not in os.environ:  # else the table is made anew
        assert cell == _written()[name][tool]


@cache
def _written() -> dict[str, dict[str, str]]:
    return table_rows(BEGIN, 'network', list(TOOLS))


@pytest.fixture(scope='module', autouse=True)
def _cells():
    """Leaves the cells for scalenet experiment host-table, if it asks for them."""
    yield
    if path := os.environ.get('SCALENET_TOOL_CELLS'):
        Path(path).write_text(json.dumps(dict(promises=TOOLS, cells=CELLS, made=versions())))


@pytest.fixture(scope='module', params=NETWORKS)
def network(request):
    deep, scaled, size = NETWORKS[request.param]
    torch.manual_seed(0)
    models = perturb(deep(), std=0.1), perturb(scaled(), std=0.1)
    for model in models:
        model.eval()
    return request.param, *models, torch.randn(2, 3, size, size)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = model(x)
    return result(tuple(found.values()) if isinstance(found, dict) else found)


def works(use: Callable, model: nn.Module, x: Tensor) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return output(use(copy.deepcopy(model), x), x) is not None
    except Exception:
        return False


SLOW = ('export', 'compile')


@pytest.mark.parametrize('tool', [pytest.param(t, marks=[pytest.mark.slow] * (t in SLOW)) for t in READ])
def test_what_a_tool_reads_computes_the_same_or_is_refused(network, tool):
    name, deep, scaled, x = network
    use = READ[tool][1]
    before = copy.deepcopy(scaled)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            read = use(scaled, x)
            y = output(read, x)
    except Exception as e:
        refused = 'scaled network' in str(e) and '; use torch.' in str(e)
        assert refused or not works(use, deep, x), 'the deep host can be read, and the scaled network neither read'
        assert str(scaled) == str(before) and torch.equal(output(scaled, x), output(before, x)), 'changed on the way'
        _tell(name, tool, REFUSED if refused else NONE)
        return
    torch.testing.assert_close(y, output(scaled, x), rtol=1e-4, atol=1e-5)
    _tell(name, tool, YES)


@pytest.mark.parametrize('tool', REWRITE)
def test_what_is_put_on_every_linear_acts_in_every_instance_as_on_copies(network, tool):
    """The expected output: the weights changed by hand, in a network that the tool never saw."""
    name, _, scaled, x = network
    with torch.no_grad():
        byhand = copy.deepcopy(scaled)
        for weight in {id(m.weight): m.weight for m in linears(byhand)}.values():
            if tool == 'parametrize':
                weight.div_(2)
            else:
                smallest = weight.abs().flatten().sort().indices[: weight.numel() // 2]
                weight.view(-1)[smallest] = 0
    _, put, remove = REWRITE[tool]
    changed = copy.deepcopy(scaled)
    for linear in linears(changed):
        put(linear)
    torch.testing.assert_close(output(changed, x), output(byhand, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output(scaled, x), output(byhand, x), atol=1e-3)
    for linear in linears(changed):
        remove(linear, 'weight')
        assert isinstance(linear._parameters['weight'], nn.Parameter)
    torch.testing.assert_close(output(changed, x), output(byhand, x), rtol=1e-4, atol=1e-5)
    _tell(name, tool, YES)


@pytest.mark.parametrize('tool', REWRITE)
def test_what_is_removed_from_some_instances_leaves_the_others_as_in_independent_copies(network, tool):
    _, _, scaled, x = network
    _, put, remove = REWRITE[tool]
    before = [m.weight.clone() for m in linears(scaled)]
    changed, copies = copy.deepcopy(scaled), copy.deepcopy(scaled)
    for _, layers in scaled_layers(copies):
        for place, _ in list(ties(layers)):
            place.held[place.name] = copy.deepcopy(place.tensor)
    for model in (changed, copies):
        for linear in linears(model)[::3]:
            put(linear)
            remove(linear, 'weight')
    assert torch.equal(output(changed, x), output(copies, x))
    others = [i for i in range(len(before)) if i % 3]
    assert all(torch.equal(linears(changed)[i].weight, before[i]) for i in others)


@pytest.mark.parametrize('adjust', ['ParallelAdapter', 'LoRA'])
def test_a_symbolic_graph_trains_the_adapters_and_keeps_the_ties(adjust):
    model = scalenet_mm.scale(ZOO['timm ViT'].make((3,)).eval(), adjust=dict(type=adjust, rank=4))
    graph = torch.fx.symbolic_trace(perturb(model, std=0.1))
    graph(ZOO['timm ViT'].input()).square().sum().backward()
    assert {id(p) for p in graph.parameters()} <= {id(p) for p in model.parameters()}, 'no tensor was copied'
    adapters = [m.adapter for m in model.modules() if isinstance(m, AdaptedLinear)]
    assert adapters and all(p.grad.abs().max() > 0 for a in adapters for p in a.parameters())


def test_torchvision_extracts_features_of_the_scaled_layers():
    extract = pytest.importorskip('torchvision.models.feature_extraction').create_feature_extractor
    model = scalenet_mm.scale(ZOO['timm ViT'].make((3,)).eval())
    x = ZOO['timm ViT'].input()
    last = extract(model, {'blocks.5': 'last'})(x)['last']
    torch.testing.assert_close(model.norm(last), model.forward_features(x))


def test_the_table_of_tools_in_the_documentation_is_of_these_networks():
    assert list(_written()) == list(NETWORKS)


@pytest.mark.parametrize(
    'part', [lambda: scaled_vit(adjust=None), lambda: scaled_vit().blocks[1]], ids=['tied', 'block']
)
def test_scripting_is_refused_in_words_without_adapters_and_of_one_block(part):
    with pytest.raises(TypeError, match=r'torch\.jit\.script cannot read .* use torch\.jit\.trace'):
        torch.jit.script(part())


def scaled_vit(**scale) -> nn.Module:
    return scalenet_mm.scale(ZOO['timm ViT'].make((3,)).eval(), **scale)
