"""P5, P9, P10 and the ablation: our network beside itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from ...ops import SWITCHES, Ops
from . import networks as models
from .cases import Case, Timed, Times, agree
from .networks import MM_STAGES
from .parity import Net, Parity, compare
from .settings import DTYPES, Settings
from .steps import forward_pass, images, operations, precision, train_step


def _p5(s: Settings, make: Callable, name: str, dtype: str, batch: int) -> Timed:
    ours = make(s, name)
    bare = make(s, name, adjust=None)
    bare.load_state_dict({k: v for k, v in ours.state_dict().items() if k in bare.state_dict()})
    flops = {side: batch * operations(model, s.at.image, False) for side, model in (('without', bare), ('with', ours))}
    share = flops['with'] / flops['without'] - 1
    net = Net(ours.to(DTYPES[dtype]))
    batch_of = images(s, batch, DTYPES[dtype])

    def value(times: Times) -> float:
        overhead = times['with'] / times['without'] - 1
        return 100 * (overhead - share) if s.device == 'cuda' else overhead / share

    return Timed(
        {'without': forward_pass(Net(bare.to(DTYPES[dtype])), batch_of), 'with': forward_pass(net, batch_of)},
        {'': value},
        flops,
        partial(agree, net, None, batch_of, dtype, nullcontext),
        0.0 if s.device == 'cuda' else 1.0,
        repeats=3,
    )


def p5(s: Settings) -> list[Case]:
    hosts = (
        (models.our_swin, 'Swin-T'),
        (models.our_swin, 'Swin-S'),
        (models.our_deit, 'DeiT-T'),
        (models.our_deit, 'DeiT-B'),
    )
    return [
        Case('P5', f'{name}, batch {batch}', dtype, partial(_p5, s, make, name, dtype, batch))
        for make, name in hosts
        for batch in s.batches((4,), (64,))
        for dtype in s.timed('fp32')
    ]


DEPTHS = (1, 2, 3, 4)


def _p9(s: Settings, train: bool, dtype: str, batch: int) -> Timed:
    nets = {f'x{k}': Net(models.our_deit(s, 'DeiT-B', times=k)) for k in DEPTHS}
    flops = {k: batch * operations(n.model, s.at.image, train) for k, n in nets.items()}
    context = precision(s, dtype if train else 'fp32')
    if not train:
        nets = {k: Net(n.model.to(DTYPES[dtype])) for k, n in nets.items()}
    batch_of = images(s, batch, torch.float32 if train else DTYPES[dtype])
    make = partial(train_step, context=context) if train else forward_pass

    def value(times: Times) -> float:
        return (times['x4'] - times['x1']) / 3 / times['x1']

    return Timed(
        {k: make(net, batch_of) for k, net in nets.items()},
        {'': value},
        flops,
        partial(agree, nets['x4'], None, batch_of, dtype, nullcontext),
        value(flops),
    )


def p9(s: Settings) -> list[Case]:
    return [
        Case('P9', f'DeiT-B {what}, batch {batch}', dtype, partial(_p9, s, train, dtype, batch))
        for what, train in (('forward', False), ('step', True))
        for batch in s.batches((1,), (64,))
        for dtype in s.timed('fp32')
    ]


DROP_PATH = 0.5  # Sec. IV-A1, Base


def _p10(s: Settings, dtype: str, batch: int) -> Timed:
    ours = Net(models.our_deit(s, 'DeiT-B', drop_path_rate=DROP_PATH))
    nets = {form: models.switched(ours, s.our_ops(drop_path=form)) for form in ('dense', 'sparse')}
    depth = sum(len(m) for m in ours.model.layer_maps().values())
    kept = 1 - statistics.mean(torch.linspace(0, DROP_PATH, depth).tolist())
    flops = batch * operations(ours.model, s.at.image, True)
    batch_of, context = images(s, batch), precision(s, dtype)

    def check() -> list[Parity]:
        """One seed draws the same masks on the CPU in fp32, so both forms compute the same there."""
        dense, sparse = (Net(models.switched(n, s.our_ops(drop_path=f)).model.cpu()) for f, n in nets.items())
        return [compare('dense drop path', sparse, dense, batch_of.cpu(), _seeded)]

    return Timed(
        {form: train_step(net, batch_of, context) for form, net in nets.items()},
        {'': lambda times: times['sparse'] / times['dense']},
        {'dense': flops, 'sparse': round(flops * kept)},
        check,
        kept,
        repeats=4,  # several draws a round
    )


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def p10(s: Settings) -> list[Case]:
    return [
        Case('P10', f'DeiT-B24, batch {batch}', dtype, partial(_p10, s, dtype, batch))
        for batch in s.batches((4,), (64,))
        for dtype in s.timed('fp32')
    ]


ABLATED = ('linear', 'window', 'mlp', 'recompute', 'compile')  # drop_path is P10, weights P7


def variants(s: Settings) -> dict[str, dict]:
    """Switches by a name: none, each choice alone, all defaults, all but one."""
    plain, default = (Ops.read(x).as_dict() for x in ('plain', None))
    found = {'none (plain)': plain}
    for name in ABLATED:
        for choice in SWITCHES[name].choices[:-1]:
            if name != 'compile' or s.compiled:
                found[f'{name}={choice} alone'] = {**plain, name: choice}
    found['all (defaults)'] = default
    for name in ABLATED:
        if default[name] != plain[name]:
            found[f'all but {name}'] = {**default, name: plain[name]}
    return found


def _ablation(s: Settings, name: str, dtype: str, batch: int) -> Timed:
    ours = Net(models.our_swin(s, name, pyramid=True))
    stock = models.deep_peer(partial(models.mmdet_swin, s, name), ours.model, MM_STAGES, s.device)
    batch_of, context = images(s, batch), precision(s, dtype)
    flops = {
        side: batch * operations(model, s.at.image, True) for side, model in (('peer', stock), ('ours', ours.model))
    }
    nets = {k: models.switched(ours, ops) for k, ops in variants(s).items()}
    reference = models.plain(ours)

    def check() -> list[Parity]:
        """In fp32."""
        return [compare(f'plain with {k}', net, reference, batch_of) for k, net in nets.items()]

    steps = {f'ours {k}': train_step(net, batch_of, context) for k, net in nets.items()}
    return Timed(
        {'peer eager': train_step(Net(stock), batch_of, context), **steps},
        {k: lambda times, k=k: times[f'ours {k}'] / times['peer eager'] for k in nets},
        flops,
        check,
        flops['ours'] / flops['peer'],
    )


def ablation(s: Settings) -> list[Case]:
    return [
        Case('ablation', f'Swin-T, batch {batch}', dtype, partial(_ablation, s, 'Swin-T', dtype, batch))
        for batch in s.batches((4,), (64,))
        for dtype in s.timed('fp32')
    ]
