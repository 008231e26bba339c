"""compat: inheritance and resuming, with real configs and real checkpoints, in either family."""

import subprocess
import sys
import time
from pathlib import Path
from pickle import UnpicklingError

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub

from scalenet_mm import compat

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def patched():
    compat.patch()


def python(code: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter that has not imported scalenet_mm."""
    return subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ('base', 'key', 'value'),
    [
        ('mmpretrain::_base_/models/swin_transformer/base_224.py', 'model.backbone.arch', 'base'),
        ('mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'model.type', 'MaskRCNN'),
        ('mmseg::_base_/models/upernet_swin.py', 'model.decode_head.type', 'UPerHead'),
    ],
)
def test_a_config_inherits_from_each_package_by_its_import_name(tmp_path, base, key, value):
    path = tmp_path / 'leaf.py'
    path.write_text(f'_base_ = {base!r}\nextra = 1\n')
    found = Config.fromfile(path)
    assert found.extra == 1
    for part in key.split('.'):
        found = found[part]
    assert found == value


def test_a_leaf_inherits_a_flat_config_of_ours_and_its_types_keep_the_default_scope(tmp_path):
    own = sorted(path for path in (ROOT / 'configs').glob('*.py'))
    if not own:
        pytest.skip('no config yet')
    path = tmp_path / 'leaf.py'
    path.write_text(f"_base_ = 'scalenet_mm::{own[0].name}'\nwork_dir = 'elsewhere'\n")
    leaf, base = Config.fromfile(path), Config.fromfile(own[0])
    assert leaf.pop('work_dir') == 'elsewhere'
    base.pop('work_dir', None)
    assert leaf.to_dict() == base.to_dict()


def test_an_unknown_config_of_ours_is_refused_with_the_list_of_those_there_are(tmp_path):
    path = tmp_path / 'leaf.py'
    path.write_text("_base_ = 'scalenet_mm::no_such.py'\n")
    with pytest.raises(FileNotFoundError, match=r'no_such\.py.*the nearest of'):
        Config.fromfile(path)


def test_relative_bases_still_resolve(tmp_path):
    (tmp_path / 'base.py').write_text('a = 1\n')
    (tmp_path / 'leaf.py').write_text("_base_ = './base.py'\nb = 2\n")
    assert Config.fromfile(tmp_path / 'leaf.py').to_dict() == {'a': 1, 'b': 2}


def test_patching_again_changes_nothing_and_takes_under_20_ms():
    before = Config._get_cfg_path
    start = time.process_time()  # of this process alone, whatever else runs
    compat.patch()
    assert time.process_time() - start < 0.02
    assert Config._get_cfg_path is before


def test_what_mmengine_saves_beside_the_weights_loads_with_weights_only(tmp_path):
    hub = MessageHub('test_compat')
    for value in (0.5, np.float64(0.25), np.float32(2), 3):
        hub.update_scalar('train/loss', value)
    hub.update_info('epoch', 3)
    hub.update_info('best', np.int64(7))
    hub.update_info('curve', np.arange(4, dtype=np.uint8))
    torch.save({'message_hub': hub.state_dict()}, tmp_path / 'a.pth')
    read = torch.load(tmp_path / 'a.pth', weights_only=True)['message_hub']
    loss = read['log_scalars']['train/loss']
    assert type(loss) is HistoryBuffer
    assert loss.mean() == (0.5 + 0.25 + 2 + 3) / 4
    assert loss.statistics('max') == 3
    assert read['runtime_info']['best'] == 7
    np.testing.assert_array_equal(read['runtime_info']['curve'], [0, 1, 2, 3])


class Reads:
    """Pickles as `getattr(owner, name)`."""

    def __init__(self, owner: type, name: str) -> None:
        self.what = owner, name

    def __reduce__(self):
        return getattr, self.what


@pytest.mark.parametrize(
    'foreign', [Reads(np.ndarray, 'dump'), Reads(HistoryBuffer, '__init__')], ids=['numpy', 'other']
)
def test_the_allow_list_does_not_let_a_file_read_attributes_at_will(tmp_path, foreign):
    torch.save({'x': foreign}, tmp_path / 'a.pth')
    with pytest.raises(UnpicklingError, match=r'getattr\(.*\) is not allowed'):
        torch.load(tmp_path / 'a.pth', weights_only=True)


def test_a_packaged_config_is_looked_up_once(monkeypatch):
    """mmengine reads every model list of the package to find it, 0.2 seconds."""
    name = 'mmpretrain::_base_/models/swin_transformer/base_224.py'
    first = compat.read_config(name)
    monkeypatch.setattr('mmengine.config.utils.load', lambda path: pytest.fail(f'reads {path} again'))
    assert compat.read_config(name).pretty_text == first.pretty_text


def test_without_the_patch_upstream_cannot_resume_and_with_it_every_family_can(tmp_path):
    code = """
import torch
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import _load_checkpoint
hub = MessageHub('a')
hub.update_scalar('loss', 0.5)
torch.save(dict(message_hub=hub.state_dict()), 'a.pth')
import scalenet_mm  # patches
assert _load_checkpoint('a.pth')['message_hub']['log_scalars']['loss'].current() == 0.5
"""
    plain = code.replace('import scalenet_mm  # patches', '')
    mended = python(code, tmp_path)
    assert mended.returncode == 0, mended.stderr[-2000:]
    fails_alone = mmengine.__version__ == '0.10.7' and torch.__version__ >= '2.6'
    assert ('UnpicklingError' in python(plain, tmp_path).stderr) == fails_alone
