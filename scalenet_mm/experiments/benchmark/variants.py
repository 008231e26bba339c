"""P5, P9, P10 and the ablation: our network beside itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from ...ops import SWITCHES, Ops
from . import networks as models
from .cases import Timed, Times, agree
from .parity import Net, Parity, compare
from .settings import DTYPES, Settings
from .steps import forward_pass, images, operations, precision, train_step

DEPTHS = (1, 2, 3, 4)
DROP_PATH = 0.5  # Sec. IV-A1, Base
CHECKED = 4  # images whose drop path is compared on the CPU, which is slow beside a GPU
ABLATED = ('linear', 'window', 'mlp', 'recompute', 'compile')  # drop_path is P10, weights P7


def adapters(s: Settings, name: str, dtype: str, batch: int) -> Timed:
    """P5."""
    make = models.our_swin if name.startswith('Swin') else models.our_deit
    ours, bare = make(s, name), make(s, name, adjust=None)
    bare.load_state_dict({k: v for k, v in ours.state_dict().items() if k in bare.state_dict()})
    flops = operations(s, {'without': bare, 'with': ours}, batch, train=False)
    share = flops['with'] / flops['without'] - 1
    nets = {'without': Net(bare.to(DTYPES[dtype])), 'with': Net(ours.to(DTYPES[dtype]))}
    batch_of, cuda = images(s, batch, DTYPES[dtype]), s.device == 'cuda'

    def value(times: Times) -> float:
        overhead = times['with'] / times['without'] - 1
        return 100 * (overhead - share) if cuda else overhead / share

    return Timed(
        {k: forward_pass(net, batch_of) for k, net in nets.items()},
        {'': value},
        partial(agree, nets['with'], None, batch_of, dtype, nullcontext),
        flops,
        0.0 if cuda else 1.0,
        repeats=3,
    )


def depth(s: Settings, train: bool, dtype: str, batch: int) -> Timed:
    """P9."""
    nets = {f'x{k}': Net(models.our_deit(s, 'DeiT-B', times=k)) for k in DEPTHS}
    flops = operations(s, {k: n.model for k, n in nets.items()}, batch, train)
    kind = torch.float32 if train else DTYPES[dtype]
    make = partial(train_step, context=precision(s, dtype)) if train else forward_pass
    batch_of = images(s, batch, kind)
    for net in nets.values():
        net.model.to(kind)

    def value(times: Times) -> float:
        return (times['x4'] - times['x1']) / 3 / times['x1']

    return Timed(
        {k: make(net, batch_of) for k, net in nets.items()},
        {'': value},
        partial(agree, nets['x4'], None, batch_of, dtype, nullcontext),
        flops,
        value(flops),
    )


def drop_path(s: Settings, name: str, dtype: str, batch: int) -> Timed:
    """P10."""
    ours = Net(models.our_deit(s, name, drop_path_rate=DROP_PATH))
    nets = {form: models.switched(ours, s.our_ops(drop_path=form)) for form in ('dense', 'sparse')}
    layers = sum(len(m) for m in ours.model.layer_maps().values())
    kept = 1 - statistics.mean(torch.linspace(0, DROP_PATH, layers).tolist())
    flops = operations(s, {'dense': ours.model}, batch, train=True)
    batch_of, context = images(s, batch), precision(s, dtype)

    def check() -> list[Parity]:
        """One seed draws the same masks on the CPU in fp32, so both forms compute the same there."""
        dense, sparse = (Net(models.switched(n, s.our_ops(drop_path=f)).model.cpu()) for f, n in nets.items())
        return [compare('dense drop path', sparse, dense, batch_of[:CHECKED].cpu(), _seeded)]

    return Timed(
        {form: train_step(net, batch_of, context) for form, net in nets.items()},
        {'': lambda times: times['sparse'] / times['dense']},
        check,
        flops | {'sparse': round(flops['dense'] * kept)},
        kept,
        repeats=4,  # several draws a round
    )


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def variants(s: Settings) -> dict[str, dict]:
    """Switches by a name: none, each default alone, other choices beside the defaults, all defaults, all but one."""
    plain, default = (Ops.read(x).as_dict() for x in ('plain', None))
    found = {'none (plain)': plain}
    for name in ABLATED:
        for choice in SWITCHES[name].choices[:-1]:
            if choice == default[name]:
                found[f'{name}={choice} alone'] = {**plain, name: choice}
            elif name != 'compile' or s.compiled:
                found[f'defaults and {name}={choice}'] = {**default, name: choice}
    found['all (defaults)'] = default
    for name in ABLATED:
        if default[name] != plain[name]:
            found[f'all but {name}'] = {**default, name: plain[name]}
    return found


def ablation(s: Settings, name: str, dtype: str, batch: int) -> Timed:
    """P1's step with other switches."""
    ours, stock = models.beside_mmdet(s, name)
    batch_of, context = images(s, batch), precision(s, dtype)
    flops = operations(s, {'peer': stock, 'ours': ours.model}, batch, train=True)
    nets = {k: models.switched(ours, ops) for k, ops in variants(s).items()}
    reference = models.plain(ours)

    def check() -> list[Parity]:
        """In fp32."""
        return [compare(f'plain with {k}', net, reference, batch_of) for k, net in nets.items()]

    return Timed(
        {
            'peer eager': train_step(Net(stock), batch_of, context),
            **{f'ours {k}': train_step(net, batch_of, context) for k, net in nets.items()},
        },
        {k: lambda times, k=k: times[f'ours {k}'] / times['peer eager'] for k in nets},
        check,
        flops,
        flops['ours'] / flops['peer'],
    )
