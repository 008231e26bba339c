"""The set-up: real processes, real small environments, a real build of a one-file mmcv."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import matrix
import pytest
from packaging.requirements import Requirement

from scalenet_mm.commands.remedies import compiler_fault

ROOT = Path(__file__).resolve().parents[1]
HERE = sys.version_info[:2]
needs_compiler = pytest.mark.skipif(bool(fault := compiler_fault()), reason=f'asks for a C++ compiler. {fault}')


@pytest.fixture(scope='module')
def parts():
    """The modules of tools/_setup by name."""
    sys.path.insert(0, str(ROOT / 'tools' / '_setup'))
    try:
        found = {name: importlib.import_module(name) for name in ('base', 'steps', 'mmcv_install')}
        spec = importlib.util.spec_from_file_location('setup_main', ROOT / 'tools' / '_setup' / '__main__.py')
        found['main'] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found['main'])
        return found
    finally:
        sys.path.pop(0)


@pytest.fixture
def state(parts, tmp_path):
    """A set-up of a real empty environment with only pip's pins left out."""
    env = tmp_path / 'an env'
    venv.create(env, with_pip=False, symlinks=True)
    pins = {'one': '1.0', 'two': '2.0'}
    s = parts['base'].Setup(env, tmp_path / 'wheels', None, pins, {'one': '1.0'})
    s.state.mkdir()
    s.lock = os.open(s.state / 'lock', os.O_RDWR | os.O_CREAT)
    yield s
    os.close(s.lock)


def setup_env(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    """Runs setup_env.sh with this Python, from elsewhere."""
    command = ['bash', ROOT / 'tools' / 'setup_env.sh', *arguments]
    env = os.environ | {'SCALENET_PYTHON': sys.executable} | variables
    return subprocess.run(command, cwd='/', env=env, capture_output=True, text=True)


def add(s, dist: str, version: str, installer: bool = True) -> Path:
    info = s.site() / f'{dist}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n')
    if installer:
        (info / 'INSTALLER').write_text('pip\n')
    return info


# --- versions ------------------------------------------------------------------------------------


def test_pins_with_a_marker_apply_to_the_pythons_they_name(parts):
    text = "# a comment\na==1.0  # why\nB_c==2; python_version >= '3.11'\nb-c==1; python_version < '3.11'\n"
    assert parts['base'].read_pins(text, (3, 10)) == {'a': '1.0', 'b-c': '1'}
    assert parts['base'].read_pins(text, (3, 12)) == {'a': '1.0', 'b-c': '2'}


@pytest.mark.parametrize('python', [(3, 10), (3, 11), (3, 12)])
def test_every_python_gets_one_version_of_the_same_direct_packages(parts, python):
    base, text = parts['base'], (ROOT / 'requirements.txt').read_text()
    direct = base.read_pins(text.partition(base.TRANSITIVE)[0], python)
    assert {'torch', 'onedl-mmcv', 'onedl-mmsegmentation', 'timm', 'scikit-learn'} <= set(direct)
    assert direct['torch'] == '2.11.0'
    assert not set(base.remedies.UPSTREAM) & set(base.read_pins(text, python))


def test_all_that_the_pinned_packages_bring_along_is_pinned_too(parts):
    """Followed through the metadata of this environment; torch pins its CUDA libraries itself."""
    pins = parts['base'].read_pins((ROOT / 'requirements.txt').read_text(), HERE)
    if not _there('onedl-mmcv'):
        pytest.skip('the upstream family is installed here')
    unpinned = {
        f'{requirement.name} for {name}'
        for name in pins
        if name != 'torch' and _there(name)
        for requirement in map(Requirement, requires(name) or [])
        if not requirement.marker or requirement.marker.evaluate({'extra': ''})
        if parts['base'].normalise(requirement.name) not in pins
    }
    assert not unpinned


def _there(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def test_variables_that_lead_pip_or_python_elsewhere_are_dropped_and_indexes_kept(parts, monkeypatch):
    for name in ('PIP_USER', 'PIP_TARGET', 'PIP_NO_DEPS', 'PIP_CONSTRAINT', 'PYTHONPATH'):
        monkeypatch.setenv(name, '1')
    for name in ('PIP_INDEX_URL', 'PIP_FIND_LINKS', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'there')
    env = parts['base'].clean_environment()
    assert not {'PIP_TARGET', 'PIP_NO_DEPS', 'PIP_CONSTRAINT', 'PYTHONPATH'} & set(env)
    assert env['PIP_USER'] == '0'
    assert env['PIP_INDEX_URL'] == env['PIP_FIND_LINKS'] == env['HTTPS_PROXY'] == 'there'


# --- refusals: one plain sentence ----------------------------------------------------------------


def test_a_python_of_another_version_is_refused(tmp_path):
    done = setup_env('--python', '/bin/false', '--env', tmp_path / 'env')
    assert done.returncode == 1
    assert done.stderr == ('setup_env: /bin/false is no Python 3.10 or newer; name another one with --python.\n')


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').touch()
    done = setup_env('--env', tmp_path)
    assert done.returncode == 1
    assert 'is no Python environment and not empty: name another with --env.' in done.stderr
    assert os.listdir(tmp_path) == ['thesis.tex']


def test_an_environment_whose_python_is_gone_is_refused(tmp_path):
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').write_text('#!/bin/sh\nexit 1\n')
    (tmp_path / 'bin' / 'python').chmod(0o755)
    done = setup_env('--env', tmp_path)
    assert done.returncode == 1
    assert 'does not hold a working Python' in done.stderr


def test_what_is_wrong_with_a_place_is_told_and_never_that_a_users_environment_be_deleted(tmp_path):
    (tmp_path / 'file').touch()
    assert 'is a file: name the folder of an environment' in setup_env('--env', tmp_path / 'file').stderr
    (tmp_path / 'env' / 'bin').mkdir(parents=True)
    (tmp_path / 'env' / 'bin' / 'python').symlink_to('/bin/false')
    theirs = setup_env('--python', sys.executable, '--env', tmp_path / 'env').stderr
    assert 'does not hold a working Python' in theirs and 'name its own with --python' in theirs
    (tmp_path / 'env' / '.scalenet_mm').mkdir()
    (tmp_path / 'env' / '.scalenet_mm' / 'managed').touch()
    assert 'delete it' in setup_env('--python', sys.executable, '--env', tmp_path / 'env').stderr


def test_a_users_cdpath_leads_no_script_astray(tmp_path):
    (tmp_path / 'tools' / 'x').mkdir(parents=True)
    done = setup_env('--help', CDPATH=f'.:{tmp_path}')
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.startswith('usage: setup_env.sh')
    for script in (*(ROOT / 'tools').glob('*.sh'), ROOT / '.ci' / 'run'):
        moves = [line for line in script.read_text().splitlines() if 'cd "$(dirname' in line]
        assert all('CDPATH= cd' in line for line in moves), script


def test_a_missing_compiler_is_noticed_before_anything_long_and_names_remedy_and_log(tmp_path):
    done = setup_env('--compile-mmcv', '--env', tmp_path / 'env', CXX='/nonexistent/c++')
    assert done.returncode == 1
    assert done.stdout.startswith('[1/8] check the machine (usually a second)')
    assert '[2/8]' not in done.stdout
    sentence = done.stderr.strip()
    assert sentence.startswith('setup_env: Step 1 (check the machine) failed. Install a C++ compiler')
    assert sentence.endswith(f'The log is {tmp_path}/env/.scalenet_mm/setup.log.')
    assert len(sentence.splitlines()) == 1


def test_only_who_asks_for_a_compiled_mmcv_needs_a_compiler(parts, state, monkeypatch):
    monkeypatch.setenv('CXX', '/nonexistent/c++')
    assert 'compiler' not in parts['steps'].check_machine(state)
    state.compile_mmcv = True
    with pytest.raises(parts['base'].SetupError, match='Install a C\\+\\+ compiler'):
        parts['steps'].check_machine(state)


def test_mmcv_comes_without_operators_unless_they_are_there_or_asked_for(parts, state, monkeypatch):
    state.pins['onedl-mmcv'] = '2.3.6'
    (state.state / 'managed').touch()
    asked = []
    monkeypatch.setattr(parts['mmcv_install'], 'pip', lambda s, *words: asked.append([str(w) for w in words]))
    assert 'operators come from torchvision' in parts['mmcv_install'].install_mmcv(state)
    assert asked == [['install', '--no-deps', '--no-cache-dir', 'onedl-mmcv==2.3.6']]
    add(state, 'onedl_mmcv', '2.3.6')
    compiled = state.site() / 'mmcv' / '_ext.cpython-311-x86_64-linux-gnu.so'
    compiled.parent.mkdir()
    compiled.touch()
    assert 'was there, compiled' in parts['mmcv_install'].install_mmcv(state), 'left as it is'
    write_stamp(parts, state)
    state.compile_mmcv = True
    assert parts['main'].up_to_date(state)
    compiled.unlink()
    state.compile_mmcv = False
    write_stamp(parts, state)
    assert parts['main'].up_to_date(state)
    state.compile_mmcv = True
    assert not parts['main'].up_to_date(state), 'operators are wanted and not there'
    install = parts['mmcv_install']
    build = dict(torch='2.11', ops='cpu')  # what was compiled once is gone, by a plain install of the same version
    monkeypatch.setattr(install, 'probe', lambda s: build)
    monkeypatch.setattr(install, 'wheel_key', lambda version, build: 'key')
    monkeypatch.setattr(install, 'compile_wheel', lambda s, build, folder: (folder / 'x.whl').touch())
    (state.state / 'mmcv-wheel').write_text('key')
    (state.wheels / 'key').mkdir(parents=True)
    for said in ('compiled', 'from the wheel cache'):
        assert install.install_compiled(state, state.installed()) == f'key {said}'


@needs_compiler
@pytest.mark.parametrize('name', ['mmcv', 'onedl-mmcv'])
def test_an_mmcv_without_operators_that_somebody_has_is_not_compiled_again(parts, state, name):
    add(state, name.replace('-', '_'), '2.1.0')
    assert 'free' in parts['steps'].check_machine(state), 'without the option'
    state.compile_mmcv = True
    with pytest.raises(
        parts['base'].SetupError, match=f'{name} 2.1.0 without operators.*--no-binary={name} {name}==2.1.0'
    ):
        parts['steps'].check_machine(state)
    (state.state / 'managed').touch()
    assert 'compiler' in parts['steps'].check_machine(state), 'in an environment of its own it is'


@needs_compiler
def test_missing_python_headers_are_told_from_a_missing_compiler(parts, monkeypatch, tmp_path):
    parts['mmcv_install'].check_compiler()
    monkeypatch.setattr('sysconfig.get_path', lambda key: str(tmp_path))
    with pytest.raises(parts['base'].SetupError, match=r'Install the headers of Python 3\.'):
        parts['mmcv_install'].check_compiler()


def test_a_full_disk_is_noticed_before_anything_long(parts, state, monkeypatch):
    monkeypatch.setattr(parts['steps'], 'DISK_GB', 10**9)
    with pytest.raises(parts['base'].SetupError, match='Free disk space: .* needs 1000000000 GB'):
        parts['steps'].check_machine(state)


@pytest.mark.parametrize(
    ('prints', 'says'),
    [
        ('OSError: [Errno 28] No space left on device', 'Free some disk space'),
        ('ERROR: No matching distribution found for torch', 'The package index lacks a version'),
        ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('something nobody foresaw', 'do this'),
    ],
)
def test_a_failing_command_ends_with_what_fits_what_it_printed(parts, state, capsys, prints, says):
    with pytest.raises(parts['base'].SetupError, match=says):
        parts['base'].run(state, 'bash', '-c', f'echo "{prints}"; exit 3', otherwise='do this')
    assert prints in capsys.readouterr().out
    assert prints in state.log.read_text()


# --- second runs, interrupted runs, two at a time ------------------------------------------------


def write_stamp(parts, s) -> None:
    stamp = {'is': parts['main'].fingerprint(s), 'torch_index': s.torch_index}
    (s.state / 'stamp.json').write_text(json.dumps(stamp))


def test_the_stamp_holds_until_an_input_or_the_environment_changes(parts, state):
    up_to_date, wheel = parts['main'].up_to_date, add(state, 'one', '1.0')
    assert not up_to_date(state)
    write_stamp(parts, state)
    assert up_to_date(state)
    add(state, 'jupyter', '1.0')
    assert up_to_date(state), 'what else a user installs is no concern of ours'
    wheel.rename(wheel.with_name('one-1.1.dist-info'))
    assert not up_to_date(state), 'a pinned package changed'
    write_stamp(parts, state)
    add(state, 'mmcv', '2.1.0')
    assert not up_to_date(state), 'a second family came'
    write_stamp(parts, state)
    state.torch_index = 'https://example.org/cpu'
    assert not up_to_date(state), 'another torch is wanted'


def test_the_stamp_knows_the_contents_of_the_scripts(parts, state, monkeypatch, tmp_path):
    for name in ('tools', 'requirements.txt', 'setup.py', 'pyproject.toml'):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    monkeypatch.setattr(parts['main'], 'ROOT', tmp_path)
    write_stamp(parts, state)
    assert parts['main'].up_to_date(state)
    for name in ('requirements.txt', 'setup.py', 'tools/setup_env.sh', 'tools/_setup/steps.py'):
        with (tmp_path / name).open('a') as file:
            file.write('\n# changed\n')
        assert not parts['main'].up_to_date(state), name
        write_stamp(parts, state)


def test_a_second_run_says_so_within_2_seconds(parts, state):
    text = (ROOT / 'requirements.txt').read_text()
    state.pins = parts['base'].read_pins(text, HERE)
    write_stamp(parts, state)
    start = time.monotonic()
    done = setup_env('--env', state.env)
    assert time.monotonic() - start < 2
    assert (done.returncode, done.stdout) == (0, f'setup_env: {state.env} is up to date\n')


def test_the_torch_of_another_index_takes_the_place_of_the_one_that_is_there(parts, state, monkeypatch):
    (state.state / 'managed').touch()
    add(state, 'torch', '2.11.0')
    write_stamp(parts, state)
    asked = []
    monkeypatch.setattr(parts['steps'], 'pip', lambda s, *words: asked.append(words[0]))
    for index, commands in ((None, ['install']), ('https://example.org/cpu', ['uninstall', 'install'])):
        state.torch_index = index
        parts['steps'].install_torch(state)
        assert asked == commands
        asked.clear()
    write_stamp(parts, state)
    parts['steps'].install_torch(state)
    assert not {'uninstall'} & set(asked), 'it is the one'
    (state.state / 'stamp.json').unlink()
    parts['steps'].install_torch(state)
    assert 'uninstall' not in asked, 'an interrupted set-up goes on'
    monkeypatch.setattr('sys.argv', ['setup_env.sh', '--env', str(state.env)])
    later = parts['main'].prepare(parts['main'].parse(sys.argv[1:]))
    assert later.torch_index == 'https://example.org/cpu', 'a later call keeps to it'
    (state.state / 'managed').unlink()
    state.torch_index = 'https://example.org/other'
    parts['steps'].install_torch(state)
    assert 'uninstall' not in asked, 'of the same index, or a torch of the user'


def test_what_an_interrupted_pip_left_is_removed_in_our_environment_only(parts, state):
    whole, half = add(state, 'one', '1.0'), add(state, 'two', '2.0', installer=False)
    (state.state / 'managed').touch()
    parts['steps'].make_environment(state)
    assert whole.exists()
    assert not half.exists()
    (state.state / 'managed').unlink()
    foreign = add(state, 'conda-package', '1.0', installer=False)
    parts['steps'].make_environment(state)
    assert foreign.exists()


def test_a_second_set_up_waits_for_the_first(state):
    with (state.state / 'lock').open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        command = ['bash', ROOT / 'tools' / 'setup_env.sh', '--compile-mmcv', '--env', state.env]
        env = os.environ | {'CXX': '/nonexistent/c++', 'PYTHONUNBUFFERED': '1'}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        waiting = subprocess.Popen(command, env=env, **pipes)
        assert 'another set-up of' in waiting.stdout.readline()
        assert waiting.poll() is None
    out, error = waiting.communicate(timeout=60)
    assert out.startswith('[1/8]')
    assert 'Step 1' in error


# --- environments of the user's ------------------------------------------------------------------


def test_in_a_foreign_environment_only_what_is_missing_is_asked_for(parts, state, monkeypatch):
    add(state, 'one', '0.5')
    asked = []
    monkeypatch.setattr(parts['steps'], 'pip', lambda s, *words: asked.extend(map(str, words)))
    parts['steps'].install(state, ('one', 'two'))
    assert [word for word in asked if '==' in word] == ['two==2.0']
    held = (state.state / 'constraints.txt').read_text().split()
    assert held == ['one==0.5', 'two==2.0'], 'what is there stays as it is'
    (state.state / 'managed').touch()
    asked.clear()
    parts['steps'].install(state, ('one', 'two'))
    assert [word for word in asked if '==' in word] == ['one==1.0', 'two==2.0']


def a_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    info = f'{name}-{version}.dist-info'
    needs = ''.join(f'Requires-Dist: {r}\n' for r in requires)
    with zipfile.ZipFile(folder / f'{name}-{version}-py3-none-any.whl', 'w') as file:
        file.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}')
        file.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        file.writestr(f'{info}/RECORD', '')


def test_what_does_not_fit_a_foreign_environment_gives_way_alone(parts, state, monkeypatch, capsys, tmp_path):
    """As opencv-python 4.12, which wants numpy below 2.3, where a newer numpy is."""
    venv.create(state.env, with_pip=True, symlinks=True)
    add(state, 'number', '2.4')
    add(state, 'files', '3.0')  # of which the index has no version
    for wheel in (
        *(('picture', '1.0', 'number<2.3'), ('picture', '0.9')),
        *(('reader', '1.0', 'files<2'), ('reader', '0.9')),
        *(('other', '1.0'), ('other', '2.0')),
    ):
        a_wheel(tmp_path, *wheel)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    state.pins.clear()
    state.pins.update(number='2.2', picture='1.0', reader='1.0', other='1.0')
    parts['steps'].install(state, ('number', 'picture', 'reader', 'other'))
    there = state.installed()
    assert there['number'] == '2.4' and there['files'] == '3.0'
    assert (there['picture'], there['reader'], there['other']) == ('0.9', '0.9', '1.0')
    said = capsys.readouterr().out
    assert 'trying other versions of picture\n' in said and 'trying other versions of reader\n' in said


OFFLINE = (
    'ERROR: Could not find a version that satisfies the requirement two==2.0 (from versions: none)\n'
    'ERROR: No matching distribution found for two==2.0'
)


@pytest.mark.parametrize('output', ['Read timed out.', '[Errno 28] No space left on device', '', OFFLINE])
def test_a_passing_fault_of_pip_loosens_no_version(output, parts, state, monkeypatch):
    asked = []

    def pip(s, *words):
        asked.append([str(word) for word in words])
        error = parts['base'].SetupError('it failed')
        error.output = output
        raise error

    monkeypatch.setattr(parts['steps'], 'pip', pip)
    with pytest.raises(parts['base'].SetupError, match='it failed'):
        parts['steps'].install(state, ('two',))
    assert len(asked) == 1
    output = 'ERROR: Cannot install two because these package versions have conflicting dependencies.'
    with pytest.raises(parts['base'].SetupError, match='it failed'):
        parts['steps'].install(state, ('two',))
    assert [word for words in asked[1:] for word in words if word.startswith('two')] == ['two==2.0', 'two']


def test_upstream_openmmlab_is_not_joined_by_the_maintained_family(parts, state, monkeypatch):
    add(state, 'mmengine', '0.10.7')
    add(state, 'opencv_contrib_python', '4.11.0')
    (state.site() / '~umpy-1.26.4.dist-info').mkdir()  # what pip left of one that it was removing
    assert set(state.installed()) == {'mmengine', 'opencv-contrib-python'}
    maintained = ('onedl-mmcv', 'onedl-mmdetection', 'imaug', 'opencv-python-headless')
    state.direct = dict.fromkeys(maintained, '1.0') | {'one': '1.0'}
    state.pins |= state.direct
    asked = []
    monkeypatch.setattr(parts['steps'], 'pip', lambda s, *words: asked.extend(map(str, words)))
    parts['steps'].install_others(state)
    assert [word for word in asked if '==' in word] == ['one==1.0']
    assert 'left alone' in parts['mmcv_install'].install_mmcv(state)


def test_both_families_together_fail_the_check(parts, state):
    add(state, 'mmengine', '0.10.7')
    add(state, 'onedl_mmengine', '0.10.12')
    with pytest.raises(
        parts['base'].SetupError, match='mixed: .* overwrite each other: .* uninstall -y onedl-mmengine mmengine'
    ):
        parts['steps'].check_result(state)


# --- the compiled wheel --------------------------------------------------------------------------

BUILD = {'torch': '2.11.0+cu130', 'arch': ['9.0'], 'ops': 'cuda13.0', 'python': 'cp311'}


def test_the_wheel_cache_tells_apart_all_that_a_compiled_mmcv_depends_on(parts, monkeypatch):
    monkeypatch.delenv('TORCH_CUDA_ARCH_LIST', raising=False)
    key = parts['mmcv_install'].wheel_key
    others = [
        key('2.3.5', BUILD),
        key('2.3.6', BUILD | {'torch': '2.11.0+cpu'}),
        key('2.3.6', BUILD | {'ops': 'cuda12.8'}),
        key('2.3.6', BUILD | {'ops': 'cpu'}),
        key('2.3.6', BUILD | {'arch': ['8.0', '9.0']}),
        key('2.3.6', BUILD | {'python': 'cp312'}),
    ]
    assert len({key('2.3.6', BUILD), *others}) == 7
    assert all(re.fullmatch(r'[\w.+-]+', name) for name in others)


EXTENSION = """
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ext", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__ext() { return PyModule_Create(&module); }
"""
SETUP_PY = """
import os
from setuptools import Extension, setup
assert os.environ['MMCV_WITH_OPS'] == '1' and os.environ['FORCE_CUDA'] == '0'
assert os.environ['CUDA_VISIBLE_DEVICES'] == ''
setup(name='onedl-mmcv', version='2.3.6', packages=['mmcv'], ext_modules=EXTENSIONS)
"""


@needs_compiler
@pytest.mark.parametrize('with_ops', [True, False])
def test_a_wheel_enters_the_cache_with_its_ops_or_not_at_all(parts, state, monkeypatch, with_ops):
    source = state.env.parent / 'onedl_mmcv-2.3.6'
    (source / 'mmcv').mkdir(parents=True)
    (source / 'mmcv' / '__init__.py').touch()
    (source / 'ext.cpp').write_text('#include <Python.h>\n' + EXTENSION)
    extensions = "[Extension('mmcv._ext', ['ext.cpp'])]" if with_ops else '[]'
    (source / 'setup.py').write_text(SETUP_PY.replace('EXTENSIONS', extensions))
    with tarfile.open(f'{source}.tar.gz', 'w:gz') as archive:
        archive.add(source, source.name)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(source.parent))
    # Built by the Python of the tests, which has setuptools.
    monkeypatch.setattr(type(state), 'python', Path(sys.executable))
    state.pins['onedl-mmcv'] = '2.3.6'
    folder = state.wheels / 'key'
    if with_ops:
        parts['mmcv_install'].compile_wheel(state, BUILD | {'ops': 'cpu'}, folder)
        names = zipfile.ZipFile(next(folder.glob('*.whl'))).namelist()
        assert any(name.startswith('mmcv/_ext.') for name in names)
        return
    with pytest.raises(parts['base'].SetupError, match='built without its ops'):
        parts['mmcv_install'].compile_wheel(state, BUILD | {'ops': 'cpu'}, folder)
    assert os.listdir(state.wheels) == []


@pytest.mark.slow
def test_a_compiled_mmcv_passes_a_core_of_the_tests():
    """Half an hour on two cores, most of it for the compiler; the environment of `make matrix` is used again."""
    folder = ROOT / 'work_dirs' / 'matrix'
    folder.mkdir(parents=True, exist_ok=True)
    *_, said = matrix.build_and_test('compiled mmcv', folder)
    assert 'passed' in said and 'failed' not in said, f'{said}: {folder / "compiled_mmcv.log"}'
    python = folder / 'compiled_mmcv' / 'bin' / 'python'
    module = subprocess.check_output([python, '-c', 'import mmcv._ext; print(mmcv._ext.__file__)'], text=True).strip()
    assert module.endswith('.so') and '/mmcv/_ext.' in module


# --- the package ---------------------------------------------------------------------------------


def test_a_wheel_carries_configs_and_tools_and_requires_no_openmmlab(tmp_path):
    source = tmp_path / 'source'
    ignore = shutil.ignore_patterns('.mim', '__pycache__')
    for name in ('scalenet_mm', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ('setup.py', 'pyproject.toml', 'LICENSE', 'MANIFEST.in'):
        shutil.copy(ROOT / name, source)
    (source / 'configs' / 'probe.py').write_text('a = 1\n')
    (source / 'model-index.yml').write_text('Import: []\n')
    build = ['-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w']
    command = [sys.executable, *build, tmp_path / 'out', source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = zipfile.ZipFile(next((tmp_path / 'out').glob('scalenet_mm-0.2.0-*.whl')))
    names = set(wheel.namelist())
    mim = {'configs/probe.py', 'tools/setup_env.sh', 'tools/_setup/steps.py', 'model-index.yml'}
    assert {f'scalenet_mm/.mim/{name}' for name in mim} <= names
    assert not any(name.startswith(('configs/', 'tools/', 'tests/')) for name in names)
    wheel.extractall(tmp_path / 'there')
    script = tmp_path / 'there' / 'scalenet_mm' / '.mim' / 'tools' / 'setup_env.sh'
    done = subprocess.run(['bash', script], capture_output=True, text=True)
    assert done.returncode and done.stderr.startswith('The set-up needs a checkout') and 'Traceback' not in done.stderr
    metadata = wheel.read('scalenet_mm-0.2.0.dist-info/METADATA').decode()
    asked = [line for line in metadata.splitlines() if line.startswith('Requires-Dist')]
    always = [line for line in asked if 'extra ==' not in line]
    assert always == ['Requires-Dist: safetensors>=0.4']
    assert any('onedl-mmcv==2.3.6' in line and "extra == 'onedl'" in line.replace('"', "'") for line in asked)


def test_the_extras_and_the_pins_name_the_same_versions(parts):
    pins = parts['base'].read_pins((ROOT / 'requirements.txt').read_text(), HERE)
    extras = dict(re.findall(r"'(onedl-\w+)==([\d.]+)'", (ROOT / 'setup.py').read_text()))
    assert extras == {name: pins[name] for name in extras}
    assert len(extras) == 5


# --- the test runner -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'tier', 'rest'),
    [
        ([], 'not slow and not gpu', []),
        (['--slow', '-x'], 'slow and not gpu', ['-x']),
        (['-k', 'two words', '--gpu'], 'gpu', ['-k', 'two words']),
    ],
)
def test_run_tests_sets_up_first_and_passes_the_rest_to_pytest(tmp_path, arguments, tier, rest):
    tools = tmp_path / 'a checkout' / 'tools'
    (tmp_path / 'a checkout' / '.venv' / 'bin').mkdir(parents=True)
    tools.mkdir()
    shutil.copy(ROOT / 'tools' / 'run_tests.sh', tools)
    (tools / 'setup_env.sh').write_text('touch "$(dirname "$0")/was_set_up"\n')
    python = tmp_path / 'a checkout' / '.venv' / 'bin' / 'python'
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$PWD" "$OMP_NUM_THREADS" "${PYTHONPATH-unset}" "$@"\n')
    python.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ('SCALENET_ENV', 'OMP_NUM_THREADS')}
    command = ['bash', tools / 'run_tests.sh', *arguments]
    env |= {'PYTHONPATH': '/elsewhere'}
    done = subprocess.run(command, cwd='/', env=env, capture_output=True, text=True)
    assert (tools / 'was_set_up').exists()
    lines = done.stdout.splitlines()
    assert lines[:3] == [str(tmp_path / 'a checkout'), '1', 'unset']
    assert lines[3:7] == ['-m', 'pytest', '-m', tier]
    assert lines[9:] == rest
