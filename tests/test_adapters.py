"""Eq. 8 and Eq. 9, against the equations in float64."""

import math

import pytest
import torch
from conftest import perturb
from torch import nn

from scalenet_mm.core.adapters import AdaptedLinear, LoRA, ParallelAdapter, parse_adjust
from scalenet_mm.ops import set_ops


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def test_the_parallel_adapter_is_equation_9():
    linear = nn.Linear(6, 5).double()
    adapted = perturb(AdaptedLinear.wrap(linear, ParallelAdapter(6, 5, rank=3).double()))
    x = torch.randn(4, 7, 6, dtype=torch.float64)
    theta, a, b = adapted.weight, adapted.adapter.down, adapted.adapter.up
    expected = x @ theta.T + adapted.bias + gelu(x @ a.T) @ b.T
    torch.testing.assert_close(adapted(x), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(adapted, x.requires_grad_())


def test_lora_is_equation_8():
    adapted = perturb(AdaptedLinear.wrap(nn.Linear(6, 5).double(), LoRA(6, 5, rank=2).double()))
    x = torch.randn(3, 6, dtype=torch.float64)
    merged = adapted.weight + adapted.adapter.up @ adapted.adapter.down
    torch.testing.assert_close(adapted(x), x @ merged.T + adapted.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize('ops', ['plain', 'fast'])
def test_gate_scales_the_linear_and_not_the_adapter(ops):
    adapted = perturb(AdaptedLinear.wrap(nn.Linear(6, 5), ParallelAdapter(6, 5, rank=2), gated=True))
    set_ops(adapted, None if ops == 'fast' else ops)
    x = torch.randn(3, 6)
    expected = adapted.gate.scale * nn.functional.linear(x, adapted.weight, adapted.bias) + adapted.adapter(x)
    torch.testing.assert_close(adapted(x), expected)
    with torch.no_grad():
        adapted.gate.scale.zero_()
    torch.testing.assert_close(adapted(x), adapted.adapter(x))


@pytest.mark.parametrize('kind', [ParallelAdapter, LoRA])
def test_an_untouched_adjustment_changes_nothing_and_learns_at_step_0(kind):
    linear = nn.Linear(6, 5)
    x = torch.randn(4, 6)
    expected = linear(x)
    adapted = AdaptedLinear.wrap(linear, kind(6, 5, rank=3))
    assert torch.equal(adapted(x), expected)
    adapted(x).square().sum().backward()
    assert adapted.adapter.up.grad.abs().max() > 0
    assert adapted.adapter.down.abs().max() > 0, 'A is Gaussian, not zero'


def test_the_wrapper_keeps_parameters_hooks_and_keys():
    linear = nn.Linear(6, 5)
    seen = []
    linear.register_forward_hook(lambda *_: seen.append(1))
    adapted = AdaptedLinear.wrap(linear, ParallelAdapter(6, 5))
    adapted(torch.zeros(1, 6))
    assert adapted.weight is linear.weight and adapted.bias is linear.bias and seen == [1]
    assert set(adapted.state_dict()) == {'weight', 'bias', 'adapter.down', 'adapter.up'}
    assert not any(isinstance(m, nn.Linear) for m in adapted.adapter.modules())


@pytest.mark.parametrize('act', ['GELU', 'ReLU', 'SiLU', 'Tanh', 'Identity'])
def test_the_activation_is_a_config_key(act):
    make, targets = parse_adjust(dict(type='ParallelAdapter', rank=2, act=act, targets='fc1'))
    adapter = perturb(make(4, 4))
    x = torch.randn(3, 4)
    f = getattr(nn, act)()
    torch.testing.assert_close(adapter(x), f(x @ adapter.down.T) @ adapter.up.T)
    assert targets == ('fc1',)


@pytest.mark.parametrize(
    ('adjust', 'says'),
    [
        (dict(type='Prefix'), "['LoRA', 'ParallelAdapter']"),
        (dict(type='LoRA', rank=0), 'rank'),
        (dict(type='LoRA', rank=2.5), 'rank'),
        (dict(type='LoRA', alpha=16), 'alpha'),
        (dict(act='Swish'), 'GELU'),
    ],
)
def test_bad_adjustments_are_refused(adjust, says):
    with pytest.raises(ValueError, match='.') as error:
        parse_adjust(adjust)
    assert says in str(error.value)


def test_a_linear_that_computes_something_else_is_refused():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(TypeError, match='plain linear'):
        AdaptedLinear.wrap(Scaled(3, 3), LoRA(3, 3))
