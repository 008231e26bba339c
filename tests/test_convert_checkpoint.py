"""The converter as users call it."""

import hashlib
import os
import stat
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT, scalenet
from safetensors import safe_open
from safetensors.torch import save_file

from scalenet_mm.checkpoint import read_checkpoint, recognise, rewrite, unwrap
from scalenet_mm.commands.main import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the tool's own main in this process, which saves importing everything anew."""

    def run(*args) -> Done:
        monkeypatch.setattr(sys, 'argv', ['scalenet'])
        try:
            code = main(['convert', *map(str, args)])
        except SystemExit as ended:  # of argparse
            code = ended.code
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def source(tmp_path) -> Path:
    model = timm.models.SwinTransformer(
        img_size=32, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=2, num_classes=3
    )
    torch.save({'model': model.state_dict(), 'epoch': 3}, tmp_path / 'timm.pth')
    return tmp_path / 'timm.pth'


def test_a_conversion_there_and_to_safetensors_keeps_every_value_and_says_what_it_did(source, tmp_path, convert):
    expected = rewrite(unwrap(read_checkpoint(source)))
    for step, (origin, name, dialect) in enumerate(
        ((source, 'ours.pth', 'timm Swin'), (tmp_path / 'ours.pth', 'ours.safetensors', 'OpenMMLab Swin'))
    ):
        target = tmp_path / name
        done = convert(origin, target)
        assert done.returncode == 0, done.stderr
        got = unwrap(read_checkpoint(target))
        assert set(got) == set(expected)
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        assert recognise(got).name == 'OpenMMLab Swin'
        values = sum(tensor.numel() for tensor in expected.values())
        for fact in (dialect, f'{len(expected)}, {values:,} values', hashlib.sha256(target.read_bytes()).hexdigest()):
            assert fact in done.stdout, step
        assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(source.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['ours.pth', 'ours.safetensors', 'timm.pth']


def test_names_of_the_classes_are_kept(source, tmp_path, convert):
    state, names = torch.load(source)['model'], dict(classes=['cat', 'dog', 'cow'])
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=names, epoch=3)), tmp_path / 'named.pth')
    assert convert(tmp_path / 'named.pth', tmp_path / 'ours.pth').returncode == 0
    assert torch.load(tmp_path / 'ours.pth', weights_only=True)['meta']['dataset_meta'] == names
    assert convert(tmp_path / 'named.pth', tmp_path / 'ours.safetensors').returncode == 0
    assert read_checkpoint(tmp_path / 'ours.safetensors')['meta']['dataset_meta'] == names
    assert convert(tmp_path / 'ours.safetensors', tmp_path / 'again.pth').returncode == 0
    assert torch.load(tmp_path / 'again.pth', weights_only=True)['meta']['dataset_meta'] == names
    torch.save(dict(state_dict=state, meta=dict(CLASSES=('cat', 'dog'), PALETTE=None)), tmp_path / 'mmdet2.pth')
    assert convert(tmp_path / 'mmdet2.pth', tmp_path / 'ours2.pth').returncode == 0
    assert torch.load(tmp_path / 'ours2.pth', weights_only=True)['meta']['dataset_meta'] == {'classes': ('cat', 'dog')}
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=['cat'])), tmp_path / 'listed.pth')
    assert convert(tmp_path / 'listed.pth', tmp_path / 'other.pth').returncode == 0


def test_a_file_is_not_written_over_itself(source, convert):
    before = source.read_bytes()
    done = convert(source, source, '--force', '--backbone-only')
    assert done.returncode == 2 and 'is read and would be written over' in done.stderr and source.read_bytes() == before


def test_a_head_that_diverged_is_refused(source, tmp_path, convert):
    state = torch.load(source)['model']
    state['head.fc.bias' if 'head.fc.bias' in state else 'head.bias'][0] = float('nan')
    torch.save(state, tmp_path / 'diverged.pth')
    done = convert(tmp_path / 'diverged.pth', tmp_path / 'ours.pth')
    assert done.returncode and 'finite' in done.stderr and not (tmp_path / 'ours.pth').exists()


def test_backbone_only_leaves_the_head_and_the_prefix_out(source, tmp_path, convert):
    assert convert(source, tmp_path / 'b.pth', '--backbone-only').returncode == 0
    state = unwrap(read_checkpoint(tmp_path / 'b.pth'))
    assert 'norm1.weight' in state and 'patch_embed.projection.weight' in state
    assert not [key for key in state if key.startswith(('head', 'backbone.'))]


def test_an_existing_file_is_kept_unless_forced(source, tmp_path, convert):
    target = tmp_path / 'there.pth'
    target.write_bytes(b'precious')
    refused = convert(source, target)
    assert refused.returncode == 2 and 'add --force' in refused.stderr
    assert target.read_bytes() == b'precious'
    assert convert(source, target, '--force').returncode == 0
    assert 'state_dict' in read_checkpoint(target)


def test_a_broken_source_leaves_the_target_alone_and_ends_in_one_sentence(source, tmp_path, convert):
    source.write_bytes(source.read_bytes()[:500])
    target = tmp_path / 'there.pth'
    target.write_bytes(b'precious')
    failed = convert(source, target, '--force')
    assert failed.returncode == 2
    assert failed.stderr.startswith('scalenet convert: error: ') and 'Traceback' not in failed.stderr
    assert target.read_bytes() == b'precious'


def test_views_of_one_storage_are_saved_at_their_own_size(tmp_path, convert):
    whole = torch.randn(300_000)
    state = OrderedDict(
        {
            'blocks.0.attn.qkv.weight': whole[:30].view(10, 3),
            'blocks.0.attn.proj.weight': whole[10:20],
            'head.bias': whole[:30].view(10, 3).T,
        }
    )
    torch.save(state, tmp_path / 'views.pth')
    assert (tmp_path / 'views.pth').stat().st_size > 1_000_000
    for name in ('small.pth', 'small.safetensors'):
        assert convert(tmp_path / 'views.pth', tmp_path / name).returncode == 0
        assert (tmp_path / name).stat().st_size < 10_000
        got = unwrap(read_checkpoint(tmp_path / name))
        assert torch.equal(got['backbone.layers.0.attn.qkv.weight'], whole[:30].view(10, 3))
        assert torch.equal(got['head.layers.head.bias'], whole[:30].view(10, 3).T)


def test_the_layer_map_of_a_scaled_file_survives_in_both_formats(tmp_path, convert):
    from scalenet_mm.backbones import ScaleNetDeiT

    arch = {'embed_dims': 8, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 16}
    net = ScaleNetDeiT(arch, img_size=32, scale={'times': 2, 'order': 'interpolate'})
    holder = torch.nn.Module()
    holder.backbone = net
    torch.save({'state_dict': holder.state_dict()}, tmp_path / 'scaled.pth')
    stored = holder.state_dict()._metadata['backbone']['layer_maps']
    assert stored == {'layers': [0, 0, 1, 1]}
    for name in ('copy.pth', 'copy.safetensors'):
        done = convert(tmp_path / 'scaled.pth', tmp_path / name)
        assert done.returncode == 0, done.stderr
        state = unwrap(read_checkpoint(tmp_path / name))
        assert state._metadata['backbone']['layer_maps'] == stored
        holder.load_state_dict(state)


def test_a_safetensors_source_with_its_header_converts(tmp_path, convert):
    model = timm.create_model('test_vit', num_classes=2)
    save_file(model.state_dict(), tmp_path / 'vit.safetensors', {'format': 'pt'})
    done = convert(tmp_path / 'vit.safetensors', tmp_path / 'out.safetensors')
    assert done.returncode == 0, done.stderr
    with safe_open(tmp_path / 'out.safetensors', 'pt') as file:
        assert file.metadata()['dialect'] == 'official DeiT'
        assert 'head.layers.head.weight' in file.keys()  # noqa: SIM118


@pytest.mark.slow
def test_the_command_runs_on_its_own_from_any_folder(source, tmp_path):
    command, env = scalenet('convert', 'timm.pth', 'ours.pth'), dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'sha256' in done.stdout
    assert 'state_dict' in read_checkpoint(tmp_path / 'ours.pth')
