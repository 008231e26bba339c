"""What ``scalenet_mm.scale`` promises, on tiny random instances of the hosts of ``host_zoo``.

``scalenet experiment host-table`` runs these tests and writes what they proved into docs/hosts.md.
"""

import copy
import json
import os
import pickle
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from math import isclose
from pathlib import Path

import pytest
import torch
from conftest import filled, perturb
from host_zoo import RANK, ZOO, Zoo
from torch import Tensor, nn

from scalenet_mm import Role, TrainPolicy, rescale, scale
from scalenet_mm.checkpoint.live_delta import delta_of, scale_by_delta
from scalenet_mm.core.adapters import AdaptedLinear, Adjustment
from scalenet_mm.core.hosts import REGISTERED, register_host
from scalenet_mm.core.roles import roles
from scalenet_mm.core.tying import TiedLayers
from scalenet_mm.ops import set_ops

DOCUMENT = Path(__file__).parents[1] / 'docs' / 'hosts.md'
PROMISES = {  # column of the table -> what stands under it
    'identity': '`times=1` gives the source',
    'deep host': 'the scaled net is the one the host builds that deep',
    'ties': 'one Parameter for the big tensors, own norms',
    'adapters': 'adapters start at zero, act in eval mode, get gradients',
    'one key': 'one tensor, one key; an unscaled file loads',
    'counts': 'parameters by closed form; the increments alone are trained',
    'delta': 'source + delta is the trained model',
    'copies': 'deepcopy, pickle, `torch.save`, dtypes keep the ties',
    'compile': '`torch.compile` of the whole model',
    'features': "features of every layer are the deep host's",
    'road back': 'saved, built at the new depth, `rescale`, strict load',
    'function': "`start='function'` is the source",
    'checkpointing': "the host's gradient checkpointing",
}
YES, REFUSED, NONE = 'yes', 'refused', '-'
BEGIN = '<!-- table: scalenet experiment host-table -->'
ORDERS = {'interpolate': {3: (0, 0, 1, 1, 2, 2), 2: (0, 0, 1, 1)}, 'stack': {3: (0, 1, 2, 0, 1, 2), 2: (0, 1, 0, 1)}}
CELLS: dict[str, dict[str, str]] = {}


@dataclass
class Host:
    """A host of the zoo with weights nowhere trivial, in eval mode."""

    name: str
    zoo: Zoo
    source: nn.Module
    x: Tensor
    y: Tensor

    def scaled(self, **options) -> nn.Module:
        return scale(copy.deepcopy(self.source), **dict(dict(order='interpolate'), **options))

    def trained(self, **options) -> nn.Module:
        """Scaled, its increments no longer at their start; the ties and all else as they were."""
        model = self.scaled(**options)
        generator = torch.Generator().manual_seed(1)
        role = roles(model)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if role[name] in (Role.ADJUSTMENT, Role.NORM):
                    p.add_(torch.randn(p.shape, generator=generator) * 0.1)
        return model

    def maps(self, order: str) -> list[tuple[int, ...]]:
        """Of every container: the last one twice as deep."""
        *rest, last = self.zoo.depths
        return [*(tuple(range(n)) for n in rest), ORDERS[order][last]]

    def deep(self, order: str) -> nn.Module:
        """The network that the host itself builds at the scaled depth, with independent copies of the weights."""
        return filled(self.build(order), self.source, dict(zip(self.zoo.containers, self.maps(order))))

    def build(self, order: str) -> nn.Module:
        maps = self.maps(order)
        deep = self.zoo.make(tuple(map(len, maps)))
        kinds = getattr(getattr(self.source, 'config', None), 'layer_types', None)
        if kinds:  # an instance attends as its source does
            config = copy.deepcopy(deep.config)
            config.layer_types = [kinds[s] for s in maps[-1]]
            deep = type(deep)(config)
        deep.eval()
        return deep

    def blocks(self, model: nn.Module) -> nn.Module:
        """The container that is scaled, the last."""
        return model.get_submodule(self.zoo.containers[-1])

    def tell(self, promise: str, cell: str = YES) -> None:
        """Writes a cell of the table and holds it against the documentation's: the last line of a test."""
        assert promise in PROMISES
        CELLS.setdefault(self.name, {})[promise] = cell
        if 'SCALENET_HOST_CELLS' in os.environ:  # the table is made anew
            return
        if cell != (written := _written()[self.name][promise]):
            if versions() not in DOCUMENT.read_text():
                pytest.skip(f'The table is of other releases than {versions()} and says {written!r}, found {cell!r}')
            assert cell == written


@cache
def _written() -> dict[str, dict[str, str]]:
    return table_rows(BEGIN, 'host', list(PROMISES))


@pytest.fixture(scope='module', params=ZOO)
def host(request):
    zoo = ZOO[request.param]
    if zoo.facts:
        register_host(zoo.facts)
    torch.manual_seed(0)
    source = perturb(zoo.make(zoo.depths), std=0.1)
    source.eval()  # mmpretrain's returns None
    x = zoo.input()
    yield Host(request.param, zoo.read_from(source), source, x, run(source, x))
    if zoo.facts:
        REGISTERED.remove(zoo.facts)


@pytest.fixture(scope='module', autouse=True)
def _cells():
    """Leaves the cells for scalenet experiment host-table, if it asks for them."""
    yield
    if path := os.environ.get('SCALENET_HOST_CELLS'):
        Path(path).write_text(json.dumps(dict(promises=PROMISES, cells=CELLS, made=versions())))


def result(output) -> Tensor:
    if isinstance(output, (tuple, list)):
        output = output[-1]
    for name in ('logits', 'last_hidden_state'):
        output = getattr(output, name, output)
    return output


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return result(model(x))


def assert_ties(host: Host, model: nn.Module) -> None:
    blocks = host.blocks(model)
    sources = blocks.layer_map.sources
    for i, source in enumerate(sources):
        owner = blocks[sources.index(source)]
        mine, theirs = dict(blocks[i].named_parameters()), dict(owner.named_parameters())
        for name in mine:
            module = name.rpartition('.')[0]
            own = '.adapter.' in f'.{name}' or module in host.zoo.norms
            assert (mine[name] is theirs[name]) == (not own or sources.index(source) == i), name


def test_times_1_is_the_source_bit_for_bit_on_the_plain_path(host):
    assert torch.equal(run(host.scaled(times=1, adjust=None), host.x), host.y)
    model = host.scaled(times=1)
    assert any(isinstance(m, AdaptedLinear) for m in model.modules())
    torch.testing.assert_close(run(model, host.x), host.y, rtol=0, atol=1e-5)
    assert torch.equal(run(set_ops(model, 'plain'), host.x), host.y)
    host.tell('identity')


@pytest.mark.filterwarnings('ignore:enable_nested_tensor')
def test_the_scaled_net_is_the_deep_net_that_the_host_builds(host):
    for order in ORDERS:
        deep = host.deep(order)
        y = run(deep, host.x)
        plain = host.scaled(order=order, adjust=None)
        assert [tuple(p) for p in plain.scale_spec['layer_maps'].values()] == host.maps(order)
        assert torch.equal(run(plain, host.x), y)
        torch.testing.assert_close(run(host.scaled(order=order), host.x), y, rtol=0, atol=1e-5)
        assert not torch.allclose(y, host.y, atol=1e-3)
        _assert_same_attributes(plain, deep)
    host.tell('deep host')


def _assert_same_attributes(model: nn.Module, deep: nn.Module) -> None:
    """Window shifts, cache indices, drop-path rates, depths, masks, configs: all that is no parameter."""
    mine, theirs = dict(model.named_modules()), dict(deep.named_modules())
    assert mine.keys() == theirs.keys()
    for name, module in theirs.items():
        for attribute, value in vars(module).items():
            where, other = f'{name}.{attribute}', getattr(mine[name], attribute)
            if isinstance(value, float):
                assert isclose(other, value, abs_tol=1e-7), where
            elif isinstance(value, (bool, int, str, tuple, type(None))) and attribute != 'attn_mask':
                assert other == value, where
            elif attribute == 'feature_info':
                assert list(other) == list(value), where
            elif hasattr(value, 'model_type'):
                said = {k: v for k, v in other.to_dict().items() if k != 'scalenet'}
                assert said == value.to_dict(), where
        for key, buffer in module.named_buffers(recurse=False):
            assert torch.equal(getattr(mine[name], key), buffer), f'{name}.{key}'


@pytest.mark.filterwarnings('ignore:enable_nested_tensor')
def test_features_of_every_layer_are_those_of_the_deep_host(host):
    deep, model = host.deep('stack'), host.scaled(order='stack', adjust=None)
    if hasattr(model, 'forward_intermediates'):  # timm
        theirs, mine = ([*m.forward_intermediates(host.x)[1], m.forward_features(host.x)] for m in (deep, model))
        if len(host.zoo.depths) == 1:
            assert len(mine) == 7
            early = dict(indices=[4], stop_early=True, intermediates_only=True)
            assert torch.equal(model.forward_intermediates(host.x, **early)[0], mine[4])
    elif hasattr(model, 'config'):  # Hugging Face
        theirs, mine = (m(host.x, output_hidden_states=True).hidden_states for m in (deep, model))
    else:
        host.tell('features', NONE)
        return
    assert len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))
    host.tell('features')


def test_big_tensors_are_tied_and_norms_are_own(host):
    for order in ORDERS:
        assert_ties(host, host.scaled(order=order))
    model = host.scaled()
    for layers in (m for m in model.modules() if isinstance(m, TiedLayers)):
        for block, source in zip(layers, layers.layer_map.sources):
            owner = dict(layers[layers.layer_map.sources.index(source)].named_buffers())
            kept = block.state_dict()
            for name, buffer in block.named_buffers():
                assert torch.equal(buffer, owner[name]), name
                assert name not in kept or buffer is owner[name], name
    host.tell('ties')


def test_adapters_start_at_zero_act_in_eval_mode_and_get_gradients(host):
    model = host.scaled()
    before = run(model, host.x)
    TrainPolicy('increments').apply(model)
    result(model(host.x)).square().sum().backward()
    adjustments = [m for m in model.modules() if isinstance(m, Adjustment)]
    assert all(m.up.grad.abs().max() > 0 and not m.up.any() for m in adjustments)
    for one in adjustments:
        with torch.no_grad():
            one.up.copy_(torch.linspace(-1, 1, one.up.numel()).view_as(one.up))  # no shift, which a norm takes out
        assert not torch.equal(run(model, host.x), before)
        with torch.no_grad():
            one.up.zero_()
    assert torch.equal(run(model, host.x), before)
    host.tell('adapters')


def test_one_tensor_has_one_key_and_an_unscaled_file_loads(host, tmp_path):
    model = host.trained()
    state, unscaled = model.state_dict(), host.source.state_dict()
    doubles = len(unscaled) - len({v.data_ptr() for v in unscaled.values() if v.numel()})
    assert len(state) - len({v.data_ptr() for v in state.values() if v.numel()}) == doubles

    unique = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    torch.save(state, tmp_path / 'a.pth')
    names = sum(len(k) for k in state)
    assert (tmp_path / 'a.pth').stat().st_size < (
        sum(t.nbytes for t in unique.values()) + 400 * len(state) + 4 * names + 4000
    )

    again = host.scaled()
    again.load_state_dict(torch.load(tmp_path / 'a.pth'), strict=True)
    assert torch.equal(run(again, host.x), run(model, host.x))
    assert_ties(host, again)

    fresh = scale(perturb(host.zoo.make(host.zoo.depths), seed=9), order='interpolate')
    fresh.eval()
    fresh.load_state_dict(unscaled, strict=True)
    torch.testing.assert_close(run(fresh, host.x), run(host.scaled(), host.x), rtol=0, atol=0)
    assert_ties(host, fresh)
    host.tell('one key')


def test_counts_are_the_closed_form_and_the_increments_alone_are_trained(host):
    model = host.scaled()
    zoo, maps = host.zoo, host.maps('interpolate')
    adapters = [
        len(sources) * sum(RANK * (fan_in + fan_out) for fan_in, fan_out in mlp) for sources, mlp in zip(maps, zoo.mlps)
    ]
    added = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in host.source.parameters())
    new = len(maps[-1]) - zoo.depths[-1]
    assert added == sum(adapters) + new * zoo.norm_params

    found = roles(model)
    parameters = dict(model.named_parameters())
    by_role = {r: sum(parameters[n].numel() for n in found if found[n] is r) for r in Role}
    assert by_role[Role.ADJUSTMENT] == sum(adapters)
    assert by_role[Role.GROWN] == 0
    in_blocks = {
        f'{zoo.containers[-1]}.{i}.{name}': name.rpartition('.')[0] in zoo.norms
        for i, block in enumerate(host.blocks(model))
        for name, _ in block.named_parameters()
        if '.adapter.' not in name
    }
    for name, norm in in_blocks.items():
        assert name not in found or found[name] is (Role.NORM if norm else Role.SHARED), name
    outside = [n for n in found if not n.startswith(tuple(f'{c}.' for c in zoo.containers))]
    assert {found[n] for n in outside} <= {Role.OUTER, Role.NORM}
    once = [n for n in found if n.startswith(tuple(f'{c}.' for c in zoo.containers[:-1]))]
    assert Role.SHARED not in {found[n] for n in once}

    trained = TrainPolicy('increments').apply(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trained)
    assert set(trained) == {n for n in found if found[n] in (Role.ADJUSTMENT, Role.NORM)}
    host.tell('counts')


def test_the_source_and_a_delta_are_the_trained_model(host, tmp_path):
    model = host.trained()
    file = tmp_path / 'a.delta.safetensors'
    delta = delta_of(model, host.source, 'source.pth')
    delta.save(file)
    found = roles(model)
    increments = {n for n in found if found[n] in (Role.ADJUSTMENT, Role.NORM)}
    assert set(delta.tensors) == increments
    again = copy.deepcopy(host.source)
    scale_by_delta(again, file)
    assert torch.equal(run(again, host.x), run(model, host.x))
    assert again.scale_spec == model.scale_spec
    assert_ties(host, again)
    host.tell('delta')


def test_copies_keep_the_ties(host, tmp_path):
    model = host.trained()
    y = run(model, host.x)
    torch.save(model, tmp_path / 'a.pt')
    ways = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / 'a.pt', weights_only=False),
        copy.deepcopy(model).to(torch.float64).to(torch.float32),
    ]
    for twin in ways:
        assert torch.equal(run(twin, host.x), y)
        assert_ties(host, twin)
    for cast in (copy.deepcopy(model).half(), copy.deepcopy(model).to(torch.bfloat16)):
        assert_ties(host, cast)
        assert not any(p.dtype is torch.float32 for p in cast.parameters())
    host.tell('copies')


COMPILED = ('timm ViT', 'Hugging Face Llama', 'torch TransformerEncoder')


@pytest.mark.slow
@pytest.mark.parametrize('name', COMPILED)
def test_inductor_gives_the_same_outputs(name):
    zoo = ZOO[name]
    source = perturb(zoo.make(zoo.depths), std=0.1).eval()
    x = zoo.input()
    _compiles(Host(name, zoo, source, x, run(source, x)), 'inductor')


def _compiles(host: Host, backend: str) -> None:
    torch._dynamo.reset()
    model = host.trained()
    y = run(model, host.x)
    compiled = torch.compile(model, backend=backend)
    torch.testing.assert_close(run(compiled, host.x), y, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_compiled_model_gives_the_same_outputs(host):
    _compiles(host, 'aot_eager')
    host.tell('compile')


def test_road_back_by_the_scaled_depth(host, tmp_path):
    model = host.trained()
    y = run(model, host.x)
    if hasattr(model, 'save_pretrained'):
        from safetensors.torch import load_file, load_model

        model.save_pretrained(tmp_path, save_original_format=False)
        file = tmp_path / 'model.safetensors'
        unique = {p.data_ptr() for p in model.parameters()}
        written = load_file(file)
        assert len([k for k in written if k in dict(model.named_parameters())]) == len(unique)
        config = type(model.config).from_pretrained(tmp_path)
        again = rescale(type(model)(config), config.scalenet)
        load_model(again, file)
    else:
        again = rescale(host.build('interpolate'), model.scale_spec)
        again.load_state_dict(model.state_dict())
    again.eval()
    assert torch.equal(run(again, host.x), y)
    assert_ties(host, again)
    host.tell('road back')


def test_the_function_preserving_start_is_the_source_or_refused(host):
    if not host.zoo.function:
        untouched = copy.deepcopy(host.source)
        with pytest.raises(ValueError, match='not known to be the identity'):
            scale(untouched, start='function')
        _assert_untouched(untouched, host.source)
        host.tell('function', REFUSED)
        return
    for order in ORDERS:
        model = host.scaled(order=order, start='function')
        torch.testing.assert_close(run(model, host.x), host.y, rtol=0, atol=1e-5)
        assert torch.equal(run(set_ops(model, 'plain'), host.x), host.y)
        result(model(host.x)).square().sum().backward()
        gates = [p for n, p in model.named_parameters() if n.endswith('gate.scale')]
        assert gates and all(g.grad.abs() > 0 for g in gates)
    host.tell('function')


def _assert_untouched(model: nn.Module, source: nn.Module) -> None:
    assert str(model) == str(source)
    mine, theirs = model.state_dict(), source.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert [type(m) for m in model.modules()] == [type(m) for m in source.modules()]
    assert not hasattr(model, 'scale_spec')
    if hasattr(model, 'config') and hasattr(model.config, 'to_dict'):
        assert model.config.to_dict() == source.config.to_dict()


def test_gradient_checkpointing_gives_the_same_gradients(host):
    model = host.trained()
    if hasattr(model, 'set_grad_checkpointing'):
        enable = model.set_grad_checkpointing
    elif getattr(model, 'supports_gradient_checkpointing', False):
        enable = partial(model.gradient_checkpointing_enable, dict(use_reentrant=False))
    else:
        host.tell('checkpointing', NONE)
        return
    TrainPolicy('increments').apply(model)
    model.train()
    found, calls, counts = [], [], []
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    for _ in range(2):
        calls.clear()
        model.zero_grad()
        torch.manual_seed(3)
        result(model(host.x)).square().mean().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        counts.append(len(calls))
        enable()
    assert counts[1] > counts[0]  # computed again
    assert all(g.abs().max() > 0 for n, g in found[0].items() if n.endswith('.up'))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f'{n}: {m}')
    host.tell('checkpointing')


def versions() -> str:
    """The libraries that these tests ran with, as the line below the table names them."""
    found = {name: version(name).partition('+')[0] for name in ('torch', 'timm', 'transformers')}
    return 'With ' + ', '.join(f'{name} {number}' for name, number in found.items())


def table_rows(begin: str, first: str, columns: list[str]) -> dict[str, dict[str, str]]:
    """The committed table behind the line ``begin``: row -> column -> cell."""
    text = DOCUMENT.read_text().split(begin)[1].split('<!-- end of the table -->')[0]
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    head, *cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
    assert head == [first, *columns]
    return {row[0]: dict(zip(columns, row[1:])) for row in cells}


def test_the_table_in_the_documentation_is_of_these_hosts():
    assert list(_written()) == list(ZOO)
    assert all(cell in (YES, REFUSED, NONE) for row in _written().values() for cell in row.values())
