"""doctor: run as a process in small real environments whose packages have the known faults."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from scalenet_mm.commands.doctor import check_python

ROOT = Path(__file__).resolve().parents[1]
UPSTREAM = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmpretrain': '1.2.0', 'mmdet': '3.3.0', 'mmsegmentation': '1.2.2'}
MAINTAINED = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmpretrain': '1.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
}
TORCH = """
from types import SimpleNamespace
__version__ = '2.11.0'
version = SimpleNamespace(cuda=None)
cuda = SimpleNamespace(is_available=lambda: False)
tensor = ones = zeros = lambda *a: SimpleNamespace(numpy=lambda: None)
"""
# What numpy 2.2 prints when OpenCV 4.8 is imported.
COMPILED_FOR_NUMPY_1 = """
import sys
sys.stderr.write('A module that was compiled using NumPy 1.x cannot be run in NumPy 2.2.6')
raise ImportError('numpy.core.multiarray failed to import')
"""


class Environment:
    """A virtual environment without pip whose packages a test writes."""

    def __init__(self, path: Path) -> None:
        venv.create(path, with_pip=False, symlinks=True)
        self.python = path / 'bin' / 'python'
        self.site = next(path.glob('lib/python3.*/site-packages'))

    def add(self, dist: str, version: str, **modules: str) -> 'Environment':
        info = self.site / f'{dist.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n')
        for name, text in modules.items():
            package = self.site.joinpath(*name.split('__'))
            package.mkdir(parents=True)
            (package / '__init__.py').write_text(text)
        return self

    def doctor(self) -> tuple[int, dict[str, dict[str, str]]]:
        command = [self.python, '-m', 'scalenet_mm', 'doctor', '--json']
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, {row['check']: row for row in json.loads(done.stdout)}


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / 'env')


@pytest.mark.parametrize('of', [MAINTAINED, UPSTREAM], ids=['maintained', 'upstream'])
def test_one_family_is_fine_and_named_with_its_versions(environment, of):
    for dist, version in of.items():
        environment.add(dist, version)
    _, rows = environment.doctor()
    assert rows['family']['state'] == 'ok'
    assert all(f'{dist} {version}' in rows['family']['value'] for dist, version in of.items())


def test_both_families_in_one_environment_fail_and_all_of_them_are_to_be_uninstalled(environment):
    for dist, version in UPSTREAM.items():
        environment.add(dist, version)
    code, rows = environment.add('onedl-mmengine', '0.10.12').doctor()
    assert code == 1
    assert rows['family']['state'] == 'FAIL'
    assert all(dist in rows['family']['remedy'] for dist in ['onedl-mmengine', *UPSTREAM])


def test_two_builds_of_upstream_mmcv_overwrite_each_other_too(environment):
    _, rows = environment.add('mmcv', '2.1.0').add('mmcv-lite', '2.1.0').doctor()
    assert rows['family']['state'] == 'FAIL'


def test_a_missing_member_is_asked_for_by_the_name_its_family_has_for_it(environment):
    for dist, version in list(MAINTAINED.items())[:-1]:
        environment.add(dist, version)
    _, rows = environment.doctor()
    assert rows['family']['state'] == 'warn'
    assert 'without mmseg' in rows['family']['value']
    assert rows['family']['remedy'].endswith('install onedl-mmsegmentation')


def test_an_environment_without_anything_fails_at_the_causes_and_skips_what_hangs_on_them(environment):
    code, rows = environment.doctor()
    assert code == 1
    assert {name for name, row in rows.items() if row['state'] == 'FAIL'} == {*('family', 'torch', 'numpy ABI')}
    assert rows['mmcv ops'] == {'check': 'mmcv ops', 'state': '-', 'value': 'not tried, as torch fails', 'remedy': ''}


def test_an_mmcv_without_its_ops_fails_with_the_command_that_compiles_them(environment):
    environment.add('torch', '2.11.0', torch=TORCH)
    code, rows = environment.add('onedl-mmcv', '2.3.6', mmcv='').doctor()
    assert code == 1
    assert "No module named 'mmcv._ext'" in rows['mmcv ops']['value']
    assert 'MMCV_WITH_OPS=1' in rows['mmcv ops']['remedy']
    assert 'onedl-mmcv==2.3.6' in rows['mmcv ops']['remedy']


def test_an_mmcv_of_another_torch_fails_with_the_same_command(environment):
    symbol = "raise ImportError('mmcv/_ext.so: undefined symbol: _ZN3c106detail')"
    environment.add('torch', '2.11.0', torch=TORCH)
    _, rows = environment.add('mmcv', '2.1.0', mmcv='', mmcv___ext=symbol).doctor()
    assert rows['mmcv ops']['state'] == 'FAIL'
    assert 'mmcv==2.1.0' in rows['mmcv ops']['remedy']


@pytest.mark.parametrize(('dist', 'state'), [('mmengine', 'FAIL'), ('onedl-mmengine', 'ok')])
def test_pkg_resources_is_missed_in_the_upstream_family_only(environment, dist, state):
    _, rows = environment.add(dist, '0.10.7').add('setuptools', '82.0.0').doctor()
    assert rows['pkg_resources']['state'] == state
    assert ('setuptools<82' in rows['pkg_resources']['remedy']) == (state == 'FAIL')


def test_a_module_compiled_for_another_numpy_is_named_by_its_distribution(environment):
    environment.add('numpy', '2.2.6', numpy="__version__ = '2.2.6'")
    environment.add('scipy', '1.17.1', scipy='', scipy__ndimage='')
    _, rows = environment.add('opencv-python', '4.8.0.76', cv2=COMPILED_FOR_NUMPY_1).doctor()
    assert rows['numpy ABI']['state'] == 'FAIL'
    assert 'install -U opencv-python,' in rows['numpy ABI']['remedy']


def test_a_version_limit_is_told_from_other_failed_imports(environment):
    text = "raise AssertionError('MMCV==2.2.0 is used but incompatible. Please install mmcv<2.2.0.')"
    environment.add('torch', '2.11.0', torch=TORCH)
    _, rows = environment.add('mmdet', '3.3.0', mmdet=text).doctor()
    assert rows['imports']['state'] == 'FAIL'
    assert 'MMCV==2.2.0 is used but incompatible' in rows['imports']['value']
    assert 'mmcv==2.1.0' in rows['imports']['remedy']


def test_a_torchvision_of_another_torch_is_named(environment):
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    environment.add('torch', '2.11.0', torch=TORCH)
    _, rows = environment.add('torchvision', '0.24.0', torchvision=text).doctor()
    assert rows['torchvision']['state'] == 'FAIL'
    assert 'torch==2.11.0 torchvision==0.26.0' in rows['torchvision']['remedy']


def test_an_import_that_crashes_the_interpreter_is_one_failed_check(environment):
    code, rows = environment.add('torch', '2.11.0', torch='import os; os.abort()').doctor()
    assert code == 1
    assert 'died of signal 6' in rows['torch']['value']
    assert rows['python']['state'] == 'ok'


def test_what_people_read_is_one_line_a_check_and_the_remedy_below(environment):
    done = subprocess.run([environment.python, '-m', 'scalenet_mm', 'doctor'], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert any(line.startswith('FAIL  torch ') for line in lines)
    assert 'pip install torch torchvision' in done.stdout
    assert lines[-1].startswith('3 of 13 checks fail: family, torch')


@pytest.mark.slow
def test_the_environment_of_these_tests_has_no_fault_that_stays_one_with_scalenet_mm():
    done = subprocess.run(
        [sys.executable, '-m', 'scalenet_mm', 'doctor', '--json'], cwd=ROOT, capture_output=True, text=True
    )
    rows = {row['check']: row for row in json.loads(done.stdout)}
    assert done.returncode == 0, [row for row in rows.values() if row['state'] == 'FAIL']
    upstream = 'upstream' in rows['family']['value']
    # Each family has the one gate that importing scalenet_mm opens.
    assert rows['resume']['state'] == ('warn' if upstream else 'ok')
    assert rows['inheritance']['state'] == ('ok' if upstream else 'warn')


@pytest.mark.parametrize(
    ('version', 'state', 'said'),
    [((3, 9), 'FAIL', 'make an environment of Python 3.10 to 3.13'), ((3, 10), 'ok', ''), ((3, 13), 'ok', '')]
    + [((3, 14), 'warn', 'not tried; Python 3.10 to 3.13 are')],
)
def test_a_python_is_one_of_those_that_the_installation_page_says_were_tried(version, state, said, monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (*version, 0))
    row = check_python()
    assert row.state == state and row.remedy.startswith(said)
    tried = re.findall(r'^\| py(3\.\d+)', (ROOT / 'docs' / 'install.md').read_text(), flags=re.M)
    assert (state == 'ok') == ('.'.join(map(str, version)) in tried)


def test_checks_are_left_out_by_name_torch_too_and_another_name_is_refused(environment):
    command = [environment.python, '-m', 'scalenet_mm', 'doctor', '--json', '--skip']
    done = subprocess.run([*command, 'torch', 'compiler'], cwd=ROOT, capture_output=True, text=True)
    checks = {row['check'] for row in json.loads(done.stdout)}
    assert 'torchvision' in checks and not checks & {'torch', 'compiler'}
    done = subprocess.run([*command, 'pytorch'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'pytorch' (choose from" in done.stderr.splitlines()[-1]
