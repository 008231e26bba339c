"""The Triton kernels of window attention equal the plain code, in Triton's interpreter; a GPU runs one test more.

The interpreter is chosen when triton is imported: kernels run in one process of its own, shared by the tests.
"""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from conftest import perturb
from mmpretrain.models.utils.attention import ShiftWindowMSA

from scalenet_mm.ops.triton_window import reference, window_attention
from scalenet_mm.ops.window import biases, layout

CPU = torch.device('cpu')
pytest.importorskip('triton')


@pytest.fixture(scope='module')
def interpreted():
    """``interpreted(function, *args)`` calls a function of this module where Triton interprets its kernels."""
    before = os.environ.get('TRITON_INTERPRET')
    os.environ['TRITON_INTERPRET'] = '1'
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        pool.submit(torch.set_num_threads, 1).result()
        os.environ.pop('TRITON_INTERPRET') if before is None else None
        yield lambda function, *args: pool.submit(function, *args).result()


def inputs(size, window, shift, head, batch=2, heads=2, dtype=torch.float32, device=CPU):
    """(qkv, bias, layout, scale, pad) of maps of ``size``, and a gradient of the output."""
    torch.manual_seed(0)
    at = layout(batch, *size, window, shift, device)
    place = torch.arange(window**2)
    table = torch.randn((2 * window - 1) ** 2, heads, device=device)
    index = (place[:, None] - place) % len(table)
    bias = biases(table, index.to(device), window, shift, torch.float32)
    qkv = torch.randn(len(at.places), 3, heads, head, device=device).to(dtype)
    pad = torch.randn(3, heads, head, device=device)
    grad = torch.randn(len(qkv), heads * head, device=device).to(dtype)
    return (qkv, bias, at, head**-0.5, pad), grad


def trained(attend, qkv, args, grad):
    """Output and gradient of qkv."""
    qkv = qkv.detach().requires_grad_()
    out = attend(qkv, *args)
    out.backward(grad)
    return out.detach(), qkv.grad


def kernels(case: dict, with_pad: bool):
    (qkv, bias, at, scale, pad), grad = inputs(**case)
    return trained(window_attention, qkv, (bias, at, scale, pad if with_pad else None), grad)


CASES = {
    'window 3, shifted, padded': dict(size=(7, 5), window=3, shift=1, head=16),
    'window 3, not shifted, padded': dict(size=(5, 7), window=3, shift=0, head=16),
    'window 3, shifted, whole': dict(size=(6, 6), window=3, shift=1, head=32),
    'window 7, shifted, padded': dict(size=(9, 8), window=7, shift=3, head=32),
    'window 7, smaller map': dict(size=(5, 4), window=7, shift=3, head=16),
    'window 12: queries in blocks': dict(size=(11, 12), window=12, shift=0, head=16, batch=1),
    'heads of 24 channels': dict(size=(4, 5), window=3, shift=1, head=24, heads=3),
}


@pytest.mark.parametrize('with_pad', [True, False], ids=['pad', 'zeros'])
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_the_kernels_equal_the_reference_with_gradients(case, with_pad, interpreted):
    got, got_grad = interpreted(kernels, case, with_pad)
    (qkv, bias, at, scale, pad), grad = inputs(**case)
    args = bias.double(), at, scale, pad.double() if with_pad else None
    out, dqkv = trained(reference, qkv.double(), args, grad.double())
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_grad.double(), dqkv, rtol=1e-5, atol=1e-5)


def test_half_precision_stays_within_its_rounding(interpreted):
    case = dict(size=(7, 5), window=3, shift=1, head=16, dtype=torch.float16)
    got = interpreted(kernels, case, True)
    (qkv, *args), grad = inputs(**case)
    for one, expected in zip(got, trained(reference, qkv, args, grad)):
        assert one.dtype is torch.float16
        torch.testing.assert_close(one, expected, rtol=2e-3, atol=2e-3)


def host() -> ShiftWindowMSA:
    torch.manual_seed(0)
    attn = ShiftWindowMSA(32, num_heads=2, window_size=3, shift_size=1, pad_small_map=True)
    return perturb(attn).requires_grad_(False)


def by_host(x):
    return host()(x, (7, 5))


def by_kernels(x):
    attn = host()
    msa = attn.w_msa
    table, index = msa.relative_position_bias_table, msa.relative_position_index
    bias = biases(table, index, 3, 1, torch.float32)
    qkv = msa.qkv(x).view(-1, 3, 2, 16)
    pad = msa.qkv.bias.view(3, 2, 16)
    out = window_attention(qkv, bias, layout(len(x), 7, 5, 3, 1, CPU), msa.scale, pad)
    return msa.proj(out).view_as(x)


def test_the_kernels_equal_the_attention_of_mmpretrain(interpreted):
    x, grad = torch.randn(2, 35, 32), torch.randn(2, 35, 32)
    got = interpreted(trained, by_kernels, x, (), grad)
    for one, expected in zip(got, trained(by_host, x, (), grad)):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def refused(name: str) -> str:
    (qkv, bias, at, scale, pad), _ = inputs((7, 5), 3, 1, 16)
    wrong = {
        'bias': lambda: (qkv, bias.clone().requires_grad_(), at, scale, pad),
        'pad': lambda: (qkv, bias, at, scale, pad.requires_grad_()),
        'one sort': lambda: (qkv, bias[:1], at, scale, pad),
        'qkv of windows': lambda: (qkv[:-1], bias, at, scale, pad),
        'float64': lambda: (qkv.double(), bias, at, scale, pad),
        'bfloat16': lambda: (qkv.bfloat16(), bias, at, scale, pad),
        'pad of a map': lambda: (qkv, bias, at, scale, qkv),
    }
    try:
        window_attention(*wrong[name]())
    except ValueError as error:
        return str(error)
    return ''


@pytest.mark.parametrize(
    'name, says',
    {
        'bias': "no gradient to bias, which requires one; use method 'matmul'",
        'pad': 'no gradient to pad',
        'one sort': 'a row for each sort of window',
        'qkv of windows': r'qkv must be (70, 3, heads, hd)',
        'float64': 'got torch.float64; cast it',
        'bfloat16': 'interpreter does not compute in bfloat16',
        'pad of a map': 'pad must be (3, 2, 16)',
    }.items(),
)
def test_what_the_kernels_cannot_do_is_refused(name, says, interpreted):
    assert says in interpreted(refused, name)


def used_without_gradients():
    (qkv, bias, at, scale, pad), _ = inputs((7, 5), 3, 1, 16)
    with torch.no_grad():
        return window_attention(qkv, bias.requires_grad_(), at, scale, pad.requires_grad_())


def test_a_trained_bias_serves_where_no_gradient_is_wanted(interpreted):
    args, _ = inputs((7, 5), 3, 1, 16)
    torch.testing.assert_close(interpreted(used_without_gradients), reference(*args), rtol=1e-5, atol=1e-5)


def run(code: str, **environment) -> str:
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'} | environment
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton_the_module_imports_and_tells_what_is_missing():
    code = """
import sys, torch
sys.modules['triton'] = None
from scalenet_mm.ops import triton_window as t
print(t.available(torch.device('cpu')), t.available(torch.device('cuda')))
try:
    t.window_attention(torch.zeros(1, 3, 1, 16), None, None, 1.0)
except RuntimeError as error:
    print(error)
"""
    assert run(code).startswith('False False\nwindow attention by Triton needs the package triton')


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from scalenet_mm.ops import triton_window as t

assert t.available(torch.device('cuda')) and not t.available(torch.device('cpu'))
fixed = dict(HEADS=3, N=49, D=32, PADDED=True, PRECISION='tf32', **t.block_sizes(49, 32))
types = dict(rows='*i64', padding='*u8', sorts='*i64', bias='*bf16', pad='*fp32', scale='fp32')
types |= dict.fromkeys(('bias_sort', 'bias_head', 'bias_row'), 'i32') | dict.fromkeys(fixed, 'constexpr')
for kernel in (t.forward_kernel, t.backward_kernel):
    signature = {name: types.get(name, '*bf16') for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget('cuda', 90, 32))
    print('wgmma' in made.asm['ptx'] or 'mma.sync' in made.asm['ptx'], len(made.asm['cubin']) > 0)
"""


def test_the_kernels_compile_for_a_gpu_with_matrix_instructions(tmp_path):
    assert run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).split() == ['True'] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('window, head', [(7, 32), (12, 32), (7, 64)])
def test_on_a_gpu_half_precision_stays_within_its_rounding(window, head):
    device = torch.device('cuda')
    case = dict(size=(101, 67), window=window, shift=window // 2, head=head, batch=4, heads=4)
    (qkv, *args), grad = inputs(**case, dtype=torch.bfloat16, device=device)
    got = trained(window_attention, qkv, args, grad)
    for one, expected in zip(got, trained(reference, qkv, args, grad)):
        torch.testing.assert_close(one, expected, rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_on_a_gpu_more_windows_than_a_grid_of_65535_are_computed():
    case = dict(size=(2 * 280, 3 * 240), window=2, shift=1, head=16, batch=1, heads=1)
    (qkv, *args), grad = inputs(**case, device=torch.device('cuda'))
    assert len(args[1].sorts) > 65_535
    got = trained(window_attention, qkv, args, grad)
    for one, expected in zip(got, trained(reference, qkv, args, grad)):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
