"""Of 2,000 damaged or foreign files none loads other numbers in silence, none runs code, and each refusal names it."""

import logging
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from damaged_files import KINDS, damage, damaged_delta, saved
from mmengine.config import Config

from scalenet_mm.backbones import ScaleNetDeiT
from scalenet_mm.checkpoint.assemble import make_delta
from scalenet_mm.checkpoint.delta_file import apply_delta
from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.runner.continuing import require_continuable

ARCH = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)


def network() -> ScaleNetDeiT:
    return ScaleNetDeiT(arch=ARCH, img_size=16, patch_size=8, scale=dict(times=2))


@pytest.fixture
def good():
    """A scaled network, and the checkpoint of a run that holds it."""
    logging.disable(logging.CRITICAL)  # mmengine lists every tensor
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    meta = dict(epoch=1, iter=4, cfg='')
    yield model, state, saved(dict(meta=meta, message_hub={}, state_dict=model.state_dict()))
    logging.disable(logging.NOTSET)


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def verdict(load, model, before, wanted, file) -> str:
    """'refused', or 'same numbers'; fails for any other end."""
    try:
        load()
    except CheckpointError as error:
        assert str(file) in str(error), f'the message does not name the file: {error}'
        assert equal(model.state_dict(), before), 'refused after something was changed'
        return 'refused'
    except BaseException:
        pytest.fail(f'{file} ended otherwise than by a refusal:\n{traceback.format_exc()}')
    assert equal(model.state_dict(), wanted), f'{file} loaded other numbers'
    return 'same numbers'


def try_weights(good, folder: Path, numbers: range) -> Counter:
    _, state, data = good
    model, ends = network(), Counter()
    for seed in numbers:
        for kind in KINDS:
            file, marker = folder / f'{kind}_{seed}.pth', folder / 'ran'
            file.write_bytes(damage(kind, data, seed, marker))
            with torch.no_grad():
                for p in model.parameters():
                    p.zero_()
            before = {k: v.clone() for k, v in model.state_dict().items()}
            end = verdict(lambda file=file: model.load_pretrained(str(file)), model, before, state, file)
            ends[kind, end] += 1
            # as a checkpoint to resume from: the weights come after this, by the same road
            try:
                require_continuable(Config(dict(work_dir=str(folder / 'w'))), str(file))
            except CheckpointError as error:
                assert str(file) in str(error)
            assert not marker.exists(), f'{file} ran code'
            file.unlink()
    return ends


def try_deltas(good, folder: Path, numbers: range) -> Counter:
    model, state, _ = good
    changed = [k for k in state if 'adapter' in k or k.endswith('norm.weight')]
    make_delta(model.state_dict(), changed, model, 'base.pth', 'x = 1\n').save(folder / 'good.delta.safetensors')
    data, ends = (folder / 'good.delta.safetensors').read_bytes(), Counter()
    for seed in numbers:
        file = folder / f'{seed}.delta.safetensors'
        file.write_bytes(damaged_delta(data, seed))
        with torch.no_grad():
            for k, v in model.state_dict().items():
                v.copy_(torch.zeros_like(v) if k in changed else state[k])
        before = {k: v.clone() for k, v in model.state_dict().items()}
        ends['delta', verdict(lambda file=file: apply_delta(model, str(file)), model, before, state, file)] += 1
        file.unlink()
    return ends


# What an accident can leave without harm: bytes that no tensor and no name is made of.
HARMLESS = {'flipped', 'overwritten', 'swapped', 'delta'}


def require(ends: Counter) -> None:
    print(dict(ends))
    assert {kind for kind, end in ends if end == 'same numbers'} <= HARMLESS


def test_a_sample_of_damaged_files_of_each_kind_is_refused_by_name(good, tmp_path):
    require(try_weights(good, tmp_path, range(2)) + try_deltas(good, tmp_path, range(10)))


@pytest.mark.slow
def test_two_thousand_damaged_files_are_refused_by_name(good, tmp_path):
    print('seeds 0 to 119 of each kind of weights, 0 to 199 of deltas')
    ends = try_weights(good, tmp_path, range(120)) + try_deltas(good, tmp_path, range(200))
    assert sum(ends.values()) == 120 * len(KINDS) + 200 == 2000
    require(ends)
