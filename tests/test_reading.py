"""Reading files of every origin, and refusing those that are no checkpoints."""

import argparse
import functools
import hashlib
import http.server
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from safetensors.torch import save_file
from yacs.config import CfgNode

from scalenet_mm.checkpoint import CheckpointError, compare, read_checkpoint, register_schemes, require, unwrap
from scalenet_mm.checkpoint.strict import require_values
from scalenet_mm.checkpoint.trusted import write_weights

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def weights() -> OrderedDict:
    return OrderedDict(a=torch.randn(3), b=torch.randn(2, 2))


def same(got, expected) -> bool:
    return list(got) == list(expected) and all(torch.equal(got[k], expected[k]) for k in expected)


class Handler(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP; `/owner/repo/resolve/REVISION/file` as a model hub answers it."""

    asked: list[str] = []
    cut = 0  # so many answers end after half of the file

    def copyfile(self, source, outputfile) -> None:
        content = source.read()
        Handler.cut, cut = max(0, Handler.cut - 1), Handler.cut
        outputfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *args) -> None:
        pass

    def translate_path(self, path: str) -> str:
        parts = path.partition('?')[0].split('/')
        if 'resolve' in parts:
            Handler.asked.append(path)
            parts = ['', *parts[parts.index('resolve') + 2 :]]
        return super().translate_path('/'.join(parts))

    def end_headers(self) -> None:
        if 'resolve' in self.path:
            self.send_header('ETag', '"' + hashlib.md5(self.path.encode()).hexdigest() + '"')
            self.send_header('X-Repo-Commit', '0' * 40)
        super().end_headers()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A served folder and its address; torch's download cache is in a folder of its own."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    Handler.asked.clear()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


# ---------------------------------------------------------------------------------------- sources


def test_a_path_a_file_address_and_a_home_path_read_the_same(weights, tmp_path, monkeypatch):
    path = tmp_path / 'some weights.pth'
    torch.save({'state_dict': weights}, path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for source in (path, str(path), path.as_uri(), '~/some weights.pth'):
        assert same(read_checkpoint(source)['state_dict'], weights)


def test_a_safetensors_file_gives_its_tensors_and_its_header(weights, tmp_path):
    save_file(weights, tmp_path / 'x.safetensors', {'format': 'pt', 'author': 'me'})
    checkpoint = read_checkpoint(tmp_path / 'x.safetensors')
    assert same(OrderedDict(sorted(checkpoint['state_dict'].items())), weights)
    assert checkpoint['metadata'] == {'format': 'pt', 'author': 'me'}


def test_a_download_is_cached_and_addresses_with_one_file_name_are_kept_apart(weights, served):
    folder, address = served
    other = OrderedDict(a=torch.zeros(1))
    for name, state in (('one', weights), ('two', other)):
        (folder / name).mkdir()
        save_file(state, folder / name / 'model.safetensors')
    for _ in range(2):
        first = read_checkpoint(f'{address}/one/model.safetensors?download=true')['state_dict']
        assert same(OrderedDict(sorted(first.items())), weights)
        assert same(read_checkpoint(f'{address}/two/model.safetensors')['state_dict'], other)
        for name in ('one', 'two'):  # the second round needs no server
            (folder / name / 'model.safetensors').unlink(missing_ok=True)


def test_a_download_that_ends_early_is_not_kept(weights, served, tmp_path):
    folder, address = served
    torch.save(weights, folder / 'x.pth')
    size = (folder / 'x.pth').stat().st_size
    Handler.cut = 2  # the size is asked for first
    said = rf'x\.pth could not be downloaded \(the connection ended after {size // 2:,} of {size:,} bytes\)'
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(f'{address}/x.pth')
    assert not [p for p in (tmp_path / 'cache').rglob('*') if p.is_file()]
    assert same(read_checkpoint(f'{address}/x.pth'), weights)


def test_the_hash_in_a_file_name_is_verified_and_a_date_is_no_hash(weights, served):
    folder, address = served
    torch.save(weights, folder / 'x.pth')
    digest = hashlib.sha256((folder / 'x.pth').read_bytes()).hexdigest()
    for name in (f'deit-{digest[:8]}.pth', 'deit-deadbeef.pth', 'deit-20210624.pth'):
        (folder / name).write_bytes((folder / 'x.pth').read_bytes())
    assert same(read_checkpoint(f'{address}/deit-{digest[:8]}.pth'), weights)
    assert same(read_checkpoint(f'{address}/deit-20210624.pth'), weights)
    with pytest.raises(CheckpointError, match=r'invalid hash.*give the path of the file'):
        read_checkpoint(f'{address}/deit-deadbeef.pth')


def test_an_address_that_leads_nowhere_says_so(served):
    with pytest.raises(CheckpointError, match=r'none\.pth could not be downloaded \(.*404'):
        read_checkpoint(f'{served[1]}/none.pth')


def test_hf_addresses_go_through_huggingface_hub(weights, served, tmp_path):
    pytest.importorskip('huggingface_hub')
    folder, address = served
    (folder / 'sub').mkdir()
    save_file(weights, folder / 'sub' / 'model.safetensors')
    script = (
        'from scalenet_mm.checkpoint import read_checkpoint\n'
        "print(sorted(read_checkpoint('hf://owner/repo/sub/model.safetensors@v1')['state_dict']))"
    )
    environment = {
        'HF_ENDPOINT': address,
        'HF_HOME': str(tmp_path / 'hub'),
        'HF_HUB_DISABLE_XET': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'PYTHONPATH': str(ROOT),
        'PATH': '/usr/bin:/bin',
    }
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "['a', 'b']", done.stderr
    assert '/owner/repo/resolve/v1/sub/model.safetensors' in Handler.asked


@pytest.mark.parametrize('answer', [b'no HTTP\r\n', b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc'])
def test_a_server_that_does_not_keep_to_http_is_told_in_a_sentence(answer, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def serve():
        for _ in range(2):
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(answer)
            connection.close()

    with socket.create_server(('127.0.0.1', 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(CheckpointError, match=r'x\.pth could not be downloaded'):
            read_checkpoint(f'http://127.0.0.1:{server.getsockname()[1]}/x.pth')


def test_an_address_that_is_none_is_told_in_a_sentence():
    with pytest.raises(CheckpointError, match=r'a b\.pth could not be downloaded \(URL'):
        read_checkpoint('http://localhost:1/a b.pth')


def test_weights_on_a_store_that_is_not_there_are_told_so():
    for address in ('s3://bucket/x.safetensors', 's3://bucket/x.pth', 'torchvision://nope'):
        with pytest.raises(CheckpointError, match='it could not be fetched, or is no checkpoint') as told:
            read_checkpoint(address)
        assert 'RecursionError' not in str(told.value)


def test_safetensors_on_a_store_of_mmengines_are_read(weights, tmp_path):
    from mmengine.fileio import LocalBackend, register_backend
    from mmengine.runner import CheckpointLoader

    @register_backend('mine', prefixes='mine', force=True)
    class Mine(LocalBackend):
        def _path(self, filepath):
            return str(filepath).removeprefix('mine://')

        def get_local_path(self, filepath):
            return super().get_local_path(self._path(filepath))

    CheckpointLoader.register_scheme('mine://', lambda name, map_location=None: torch.load(name), force=True)
    save_file(weights, tmp_path / 'x.safetensors')
    try:
        assert same(
            OrderedDict(sorted(read_checkpoint(f'mine://{tmp_path}/x.safetensors')['state_dict'].items())), weights
        )
    finally:
        del CheckpointLoader._schemes['mine://']


def test_a_malformed_hf_address_shows_the_form():
    with pytest.raises(CheckpointError, match=r'not of the form hf://owner/repo/path'):
        read_checkpoint('hf://owner/model.pth')


def test_without_huggingface_hub_the_remedy_is_named(tmp_path):
    script = (
        'import sys; from scalenet_mm.checkpoint import read_checkpoint\n'
        "sys.modules['huggingface_hub'] = None\n"  # transformers, where installed, needs it as well
        "read_checkpoint('hf://owner/repo/model.safetensors')"
    )
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
    assert 'ImportError' in done.stderr and 'pip install huggingface_hub' in done.stderr


def test_an_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match=r'ftp://x/y\.pth: unknown scheme.*open-mmlab://') as told:
        read_checkpoint('ftp://x/y.pth')
    assert 'safetensors' not in str(told.value)  # a pattern of ours is no scheme
    with pytest.raises(CheckpointError, match='unknown scheme'):
        read_checkpoint('ftp://x/y.safetensors')


def test_other_schemes_of_mmengine_are_held_to_weights_only(weights, tmp_path, monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    home = tmp_path / 'mmengine'
    home.mkdir()
    (home / 'open_mmlab.json').write_text(json.dumps({'good': 'good.pth', 'bad': 'bad.pth'}))
    monkeypatch.setenv('MMENGINE_HOME', str(home))
    torch.save({'state_dict': weights}, home / 'good.pth')
    torch.save({'state_dict': weights, 'extra': Runs()}, home / 'bad.pth')
    assert same(read_checkpoint('open-mmlab://good')['state_dict'], weights)
    Runs.ran = False
    with pytest.raises(CheckpointError, match=r'refused: it stores \S*_run'):
        read_checkpoint('open-mmlab://bad')
    assert not Runs.ran
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


def test_registered_schemes_serve_mmengines_own_loader(weights, served):
    folder, address = served
    register_schemes()
    register_schemes()  # twice is once
    module = torch.nn.Module()
    module.a, module.b = (torch.nn.Parameter(torch.zeros_like(weights[k])) for k in 'ab')
    save_file(weights, folder / 'x.safetensors')
    torch.save(weights, folder / 'x.pth')
    for source in (str(folder / 'x.safetensors'), f'{address}/x.safetensors?download=true'):
        torch.nn.init.zeros_(module.a)
        load_checkpoint(module, source, map_location='cpu')
        assert torch.equal(module.a, weights['a'])
    assert CheckpointLoader._get_checkpoint_loader('hf://a/b/c.pth').__name__ == 'load_from_hf'
    for untouched, loader in (
        (str(folder / 'x.pth'), 'load_from_local'),
        (f'{address}/x.pth', 'load_from_http'),
        ('/data/x.safetensors.d/x.pth', 'load_from_local'),
    ):
        assert CheckpointLoader._get_checkpoint_loader(untouched).__name__ == loader


# ---------------------------------------------------------------------------- what a file may hold


class Runs:
    """Runs code when unpickled, as a malicious file would."""

    ran = False

    def __reduce__(self):
        return _run, ()


def _run() -> None:
    Runs.ran = True


class Tiny(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.layer(inputs).sum()}


def test_a_file_written_by_mmengines_runner_with_ema_loads(tmp_path):
    runner = Runner(
        model=Tiny(),
        work_dir=str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 2)), batch_size=2),
        train_cfg={'by_epoch': True, 'max_epochs': 1},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        custom_hooks=[{'type': 'EMAHook'}],
        default_hooks={'logger': {'type': 'LoggerHook', 'interval': 1}},
        log_level='ERROR',
        experiment_name='ema',
    )
    runner.train()
    checkpoint = read_checkpoint(tmp_path / 'epoch_1.pth')
    assert any(isinstance(h, HistoryBuffer) for h in checkpoint['message_hub']['log_scalars'].values())
    # what mmengine writes under 'state_dict' is the average already, in both readings
    for prefer_ema in (False, True):
        assert same(unwrap(checkpoint, prefer_ema), checkpoint['state_dict'])
    raw = unwrap({'ema_state_dict': checkpoint['ema_state_dict']})
    assert list(raw) == list(checkpoint['state_dict'])
    assert torch.equal(raw['layer.weight'], runner.model.layer.weight)


def test_configs_arguments_and_numpy_values_of_official_files_load(weights, tmp_path):
    content = {
        'model': weights,
        'args': argparse.Namespace(lr=1e-3, data_path='x', nested={'k': (1, 2)}),
        'config': CfgNode({'MODEL': {'TYPE': 'swin', 'DEPTHS': [2, 2]}}),
        'best': np.float64(81.3),
        'counts': np.arange(3, dtype=np.int32),
        'names': np.array(['a', 'b']),
    }
    for legacy in (False, True):
        torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=not legacy)
        read = read_checkpoint(tmp_path / 'x.pth')
        assert same(unwrap(read), weights)
        assert read['args'].nested == {'k': (1, 2)}
        assert read['config']['MODEL']['DEPTHS'] == [2, 2]
        assert read['best'] == 81.3 and read['counts'].tolist() == [0, 1, 2]


def test_a_file_that_runs_code_is_refused_by_the_name_of_what_it_stores(weights, tmp_path):
    Runs.ran = False
    torch.save({'state_dict': weights, 'hook': Runs()}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth was refused: it stores \S*_run.*weights_only'):
        read_checkpoint(tmp_path / 'x.pth')
    assert not Runs.ran


class Reaches:
    """Uses the one attribute access that log histories need to reach something else."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_attribute_access_in_a_file_is_held_to_log_histories(tmp_path):
    torch.save({'a': torch.zeros(1), 'x': Reaches()}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'refused: it stores getattr'):
        read_checkpoint(tmp_path / 'x.pth')


def test_what_others_allowed_stays_allowed(tmp_path):
    register = (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer')
    torch.save({'a': torch.zeros(1)}, tmp_path / 'x.pth')
    with torch.serialization.safe_globals([register, slice]):
        before = set(torch.serialization.get_safe_globals())
        read_checkpoint(tmp_path / 'x.pth')
        assert set(torch.serialization.get_safe_globals()) == before
    torch.serialization.add_safe_globals([register])  # scalenet_mm's own, which torch has taken away just now


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'refused: it stores torch\.nn\.modules\.linear\.Linear'):
        read_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize('name', ['x.pth', "it's my $model.pth"])
@pytest.mark.parametrize('inside', ['alone', 'model', 'net'])
def test_the_message_about_a_pickled_model_gives_a_command_that_works(inside, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 1)
    torch.save(model if inside == 'alone' else {'epoch': 3, inside: model}, tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(name)
    command = re.search(r'python -c ".*"$', str(caught.value))[0]
    shell = ['bash', '-c', f'python() {{ printf %s "$2"; }}; {command}']  # what a shell hands to python
    code = subprocess.run(shell, capture_output=True, text=True, check=True).stdout
    exec(code)
    written = name.replace('.pth', '.weights.pth')
    assert same(unwrap(read_checkpoint(written)), model.state_dict())
    with pytest.raises(FileExistsError, match='is there already'):
        exec(code)


def test_a_local_file_is_held_to_the_digest_in_its_name(weights, tmp_path):
    torch.save(weights, tmp_path / 'x.pth', _use_new_zipfile_serialization=False)
    digest = hashlib.sha256((tmp_path / 'x.pth').read_bytes()).hexdigest()[:8]
    good, bad = tmp_path / f'deit-{digest}.pth', tmp_path / 'deit-0123abcd.pth'
    for path in (good, bad):
        (tmp_path / 'x.pth').rename(path)
        (tmp_path / 'x.pth').write_bytes(path.read_bytes())
    assert same(read_checkpoint(good), weights)
    with pytest.raises(CheckpointError, match=rf'deit-0123abcd\.pth .*begins with 0123abcd, .*{digest}\. Remove it'):
        read_checkpoint(bad)


def test_a_changed_byte_of_a_tensor_is_found_by_the_checksum_that_torch_stores(weights, tmp_path):
    torch.save(weights, tmp_path / 'x.pth')
    data = (tmp_path / 'x.pth').read_bytes()
    at = data.index(weights['a'].numpy().tobytes())
    (tmp_path / 'x.pth').write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert not torch.equal(torch.load(tmp_path / 'x.pth')['a'], weights['a'])  # torch does not look
    with pytest.raises(CheckpointError, match=r'x\.pth \(.*is damaged: x/data/\d is not what was written'):
        read_checkpoint(tmp_path / 'x.pth')


def test_the_content_says_how_a_file_is_read(weights, tmp_path):
    save_file(weights, tmp_path / 'a.pth')
    torch.save(weights, tmp_path / 'b.safetensors')
    assert same(read_checkpoint(tmp_path / 'a.pth')['state_dict'], OrderedDict(sorted(weights.items())))
    assert same(read_checkpoint(tmp_path / 'b.safetensors'), weights)


def test_a_header_whose_length_reads_like_a_web_page_is_a_header(weights, tmp_path):
    save_file(weights, tmp_path / 'x.safetensors', {'text': ''})
    empty = int.from_bytes((tmp_path / 'x.safetensors').read_bytes()[:8], 'little')
    save_file(weights, tmp_path / 'x.safetensors', {'text': 'x' * (0x3C20 - empty)})
    assert (tmp_path / 'x.safetensors').read_bytes()[:2] == b' <'
    assert len(read_checkpoint(tmp_path / 'x.safetensors')['state_dict']) == len(weights)


VALUES = {
    'int8': (torch.int8, r'w: torch\.int8 values'),
    'bool': (torch.bool, r'w: torch\.bool values'),
    'complex64': (torch.complex64, r'w: torch\.complex64 values'),
    'float8': (torch.float8_e4m3fn, r'w: torch\.float8_e4m3fn values'),
}


@pytest.mark.parametrize('kind', VALUES)
def test_values_that_are_no_weights_are_refused_by_name(kind):
    dtype, said = VALUES[kind]
    with pytest.raises(CheckpointError, match=said):
        require_values({'w': torch.zeros(3)}, {'w': torch.ones(3).to(dtype)})


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e300])
def test_what_is_not_finite_in_the_models_type_is_refused_with_its_number(value):
    with pytest.raises(CheckpointError, match='w: NaN or infinity in 1 of 3 values'):
        require_values({'w': torch.zeros(3)}, {'w': torch.tensor([0, value, 1], dtype=torch.float64)})


def test_values_of_every_float_and_whole_counts_are_taken():
    large = torch.full((3,), 6e4)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):  # the sum of halves is no half
        require_values({'w': torch.zeros(3)}, {'w': large.to(dtype), 'other': torch.ones(1, dtype=torch.int8)})
    require_values({'n': torch.tensor(0)}, {'n': torch.tensor(7.0)})
    with pytest.raises(CheckpointError, match=r'n: torch\.float32 values that are no torch\.int64'):
        require_values({'n': torch.tensor(0)}, {'n': torch.tensor(7.5)})


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*none\.pth'):
        read_checkpoint(tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='is a folder'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'content, reason',
    [
        (b'', 'empty'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull'),
        (b'\n<!DOCTYPE html><html></html>', 'web page'),
        (b'{"error": "not found"}', 'JSON'),
        (b'\x00\x01\x02 random bytes', 'truncated or of another kind'),
        (pickle.dumps([1, 2]), 'list|truncated or of another kind'),
    ],
)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_what_is_no_checkpoint_is_refused_with_the_reason(content, reason, suffix, tmp_path):
    path = tmp_path / f'x{suffix}'
    path.write_bytes(content)
    if suffix == '.safetensors' and 'list' in reason:
        reason = 'truncated or of another kind'
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('kept', [0.1, 0.5, 0.99])
@pytest.mark.parametrize('kind', ['pth', 'legacy', 'safetensors'])
def test_a_truncated_file_is_refused_with_its_size(kind, kept, tmp_path):
    path = tmp_path / ('x.safetensors' if kind == 'safetensors' else 'x.pth')
    state = {'a': torch.randn(100, 10)}
    if kind == 'safetensors':
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == 'pth')
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=rf'\({path.stat().st_size:,} bytes\).*fetch it again'):
        read_checkpoint(path)


# ------------------------------------------------------------------------------------------ unwrap


@pytest.mark.parametrize('key', ['state_dict', 'model', 'state_dict_ema', 'model_ema', None])
def test_the_state_dict_is_found_and_wrappers_come_off(key, weights):
    inner = OrderedDict((f'module._orig_mod.{k}', v) for k, v in weights.items())
    inner._metadata = OrderedDict(
        {'': {}, 'module': {}, 'module._orig_mod': {'version': 3}, 'module._orig_mod.a': {'version': 7}}
    )
    state = unwrap({'epoch': 1, key: inner} if key else inner)
    assert same(state, weights)
    assert state._metadata == {'': {'version': 3}, 'a': {'version': 7}}
    assert list(inner) == [f'module._orig_mod.{k}' for k in weights]


def test_averaged_weights_are_taken_only_when_asked_for(weights):
    average = OrderedDict((k, v + 1) for k, v in weights.items())
    for plain, averaged in (('state_dict', 'state_dict_ema'), ('model', 'model_ema')):
        checkpoint = {averaged: average, plain: weights}
        assert same(unwrap(checkpoint), weights)
        assert same(unwrap(checkpoint, prefer_ema=True), average)


def test_settings_under_a_name_of_weights_hide_none(weights):
    for checkpoint in ({'model': {'depth': 12}, 'model_state_dict': weights}, {'model': {'depth': 12}, **weights}):
        assert same(unwrap(checkpoint), weights)


def test_torchs_own_averages_are_read(weights):
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2)).state_dict()
    assert list(unwrap(averaged)) == ['weight', 'bias'] == list(unwrap({'state_dict': averaged}))


def test_entries_that_have_numbers_for_names_are_no_weights(weights):
    with pytest.raises(CheckpointError, match='holds no tensors'):
        unwrap({0: torch.zeros(1)})
    assert same(unwrap({**weights, 0: torch.zeros(1)}), weights)


def test_weights_are_taken_from_their_place_beside_other_modules(tmp_path):
    net, loss = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(weight=torch.ones(2))
    meta = dict(dataset_meta=dict(classes=('a', 'b')), path=Path('x'))
    stored = {'a': {'state_dict': net.state_dict(), 'criterion': loss, 'meta': meta}, 'b': {'model': net, 'loss': loss}}
    for name, content in stored.items():
        torch.save(content, tmp_path / f'{name}.pth')
        write_weights(tmp_path / f'{name}.pth', tmp_path / f'{name}.weights.pth')
        read = read_checkpoint(tmp_path / f'{name}.weights.pth')
        assert same(unwrap(read), net.state_dict())
    assert read_checkpoint(tmp_path / 'a.weights.pth')['meta'] == dict(dataset_meta=dict(classes=['a', 'b']))


def test_a_steps_entry_of_a_model_that_is_no_average_stays():
    state = {'steps': torch.zeros(1), 'layer.weight': torch.zeros(1)}
    assert list(unwrap(state)) == ['steps', 'layer.weight']


@pytest.mark.parametrize('checkpoint', [{}, {'epoch': 3, 'state_dict': {}}, {'model': {'a': 1}}])
def test_a_checkpoint_without_tensors_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match='holds no tensors'):
        unwrap(checkpoint)


# -------------------------------------------------------------------------------------- comparison


def test_a_difference_of_each_kind_is_told_with_its_shapes(weights):
    expected = {'a': torch.Size([4]), 'c': torch.Size([5, 6])}
    differences = compare(expected, weights)
    assert differences.missing == {'c': (5, 6)}
    assert differences.unexpected == {'b': (2, 2)}
    assert differences.mis_shaped == {'a': ((4,), (3,))}
    with pytest.raises(CheckpointError) as caught:
        require(expected, weights, what='ScaleNetSwin', where='x.pth')
    for part in ('x.pth does not fit ScaleNetSwin', 'c (5, 6)', 'b (2, 2)', 'expected (4,), the file has (3,)'):
        assert part in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).differences == differences


def test_optional_keys_may_be_missing_or_unexpected_but_not_mis_shaped(weights):
    require({'a': (3,), 'c': (1,)}, weights, optional={'b', 'c'})
    assert not compare({'a': (3,), 'c': (1,)}, weights, optional={'b', 'c'})
    with pytest.raises(CheckpointError, match='of another shape'):
        require({'a': (4,), 'b': (2, 2)}, weights, optional={'a'})


def test_long_lists_are_shortened_in_the_message_and_complete_in_the_exception():
    with pytest.raises(CheckpointError) as caught:
        require({f'layer{i}': (i,) for i in range(25)}, {})
    assert len(caught.value.differences.missing) == 25
    assert '25 missing' in str(caught.value) and '... and 15 more' in str(caught.value)
    assert 'layer9 ' in str(caught.value) and 'layer10' not in str(caught.value)
