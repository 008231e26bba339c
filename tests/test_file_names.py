"""A file is what its name says: every command honours the suffix of what it writes, or refuses it before it works."""

import ast
from pathlib import Path

import pytest
from conftest import DEIT
from PIL import Image

from scalenet_mm.backbones import ScaleNetDeiT
from scalenet_mm.checkpoint.assemble import apply_to_file, export_delta
from scalenet_mm.commands.main import main
from scalenet_mm.file_names import require_suffix
from scalenet_mm.models.onnx_export import export_backbone

PACKAGE = Path(__file__).parents[1] / 'scalenet_mm'
NOT_THERE = ['nowhere.py', 'nowhere.pth']  # a config and a checkpoint: any work would end with those
WRONG = {
    'train': ['nowhere.py', '--work-dir', 'run.pth'],
    'test': [*NOT_THERE, '--out', 'metrics.pkl'],
    'test to a picture': [*NOT_THERE, '--show-dir', 'shown.png'],
    'predict': ['nowhere.jpg', *NOT_THERE, '--out', 'result.jpeg'],
    'predict as a table': ['nowhere.jpg', *NOT_THERE, '--json', 'result.csv'],
    'compare': [*NOT_THERE, *NOT_THERE, 'nowhere.jpg', '--out', 'page.png'],
    'onnx': [*NOT_THERE, 'backbone.pth'],
    'convert': ['nowhere.pth', 'new.bin'],
    'convert to a digest': ['nowhere.pth', 'deit-0123abcd.pth'],
    'delta export': ['nowhere.pth', '--base', 'b.pth', '--out', 'd.pth'],
    'delta apply': ['b.pth', 'd.safetensors', 'full.safetensors'],
    'delta push': ['d.safetensors', 'pushed.safetensors'],
    'lm-train': ['--model', 'nowhere', '--data', 'nowhere.json', '--out', 'llama.safetensors'],
    'experiment benchmark': ['--json', 'speed.md'],
    'experiment benchmark to a page': ['--report', 'nowhere.json', '--out', 'speed.json'],
    'experiment analyze': ['cka', *NOT_THERE, '--out', 'cka.png'],
    'experiment draw-method': ['method.txt'],
    'experiment early-exits': ['--out', 'exits.md'],
    'experiment paper-tables': ['--out', 'tables.md'],
    'experiment study': ['table1', '--work-dir', 'study.json'],
    'experiment reproduce': ['table8/swin_t', '--out', 'bundle.json'],
    'experiment demo-data': ['data', '--preview', 'scenes.jpg'],
    'experiment quickstart': ['--data', 'data.json'],
}


@pytest.mark.parametrize('case', WRONG)
def test_another_suffix_is_refused_before_any_work(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = case.partition(' to ')[0].partition(' as ')[0].split()
    with pytest.raises(SystemExit) as end:
        main([*words, *WRONG[case]])
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert any(text in said for text in ('must end in', 'is the name of a file', 'would say that its SHA-256')), said
    assert not any(tmp_path.iterdir())


def test_no_folder_a_folder_and_a_file_in_the_way_are_refused_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.onnx').mkdir()
    (tmp_path / 'b').touch()
    for out, said in (('a.onnx', 'is a folder'), ('b/x.onnx', 'b is a file, so there can be no folder')):
        with pytest.raises(SystemExit):
            main(['onnx', *NOT_THERE, out])
        assert said in capsys.readouterr().err


def test_a_picture_is_not_drawn_over_the_image_it_is_of(tmp_path, capsys):
    image = tmp_path / 'photo.png'
    Image.new('RGB', (8, 8)).save(image)
    before = image.read_bytes()
    assert main(['predict', str(image), *NOT_THERE, '--out', str(image)]) == 2
    assert 'photo.png is read and would be written over' in capsys.readouterr().err
    assert image.read_bytes() == before


def test_every_argument_that_names_an_output_asks_the_one_rule():
    outputs = {'--out', '--json', '--preview', '--work-dir', '--show-dir', '--data', 'out', 'target', 'dest', 'path'}
    named = []
    for file in [*PACKAGE.glob('commands/*.py'), *PACKAGE.glob('experiments/commands/*.py')]:
        for node in ast.walk(ast.parse(file.read_text())):
            first = node.args[0] if isinstance(node, ast.Call) and node.args else None
            if not (isinstance(first, ast.Constant) and first.value in outputs and node.keywords):
                continue
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if given.keys() & {'metavar', 'help', 'type'} and given.get('action') != "'store_true'":
                named.append((file.stem, first.value, given.get('type', 'text').partition('(')[0]))
    reads = {('lm_train', '--data', 'text')}
    assert len(named) > 20
    assert {n for n in named if n[2] not in ('a_folder', 'file_ending', 'folder_or_hub')} == reads


def test_from_python_too_a_name_is_asked_before_the_work(tmp_path):
    with pytest.raises(ValueError, match=r'backbone\.pth must end in \.onnx'):
        export_backbone(ScaleNetDeiT(arch=DEIT, img_size=32, patch_size=8), tmp_path / 'backbone.pth')
    for work, out in ((export_delta, 'd.pth'), (apply_to_file, 'full.safetensors')):
        with pytest.raises(ValueError, match=f'{out} must end in'):
            work('nowhere.pth', 'nowhere.pth', tmp_path / out)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['x.pth', 'x-20261126.pth', 'x-0123abc.pth', 'x-0123abcd.png', 'a-0123abcd/x.pth'])
def test_names_that_promise_no_digest_are_taken(name):
    assert require_suffix(name, '.pth', '.png') == Path(name)
