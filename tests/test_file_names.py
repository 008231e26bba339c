"""A file is what its name says: every command honours the suffix of what it writes, or refuses it before it works."""

import ast
import re
from pathlib import Path

import pytest
import torch
from conftest import DEIT
from PIL import Image

from scalenet_mm.backbones import ScaleNetDeiT
from scalenet_mm.checkpoint.assemble import apply_to_file, export_delta
from scalenet_mm.checkpoint.reading import read_checkpoint
from scalenet_mm.checkpoint.writing import pickled, write_atomically
from scalenet_mm.commands.main import main
from scalenet_mm.export.file import export_backbone
from scalenet_mm.file_names import DIGEST, a_file, a_folder, file_ending, require_folder_name, require_suffix

PACKAGE = Path(__file__).parents[1] / 'scalenet_mm'
DEMO = PACKAGE.parent / 'configs' / 'demo' / 'rank_deit.py'
NOT_THERE = ['nowhere.py', 'nowhere.pth']  # a config and a checkpoint: any work would end with those
WRONG = {
    'train': ['nowhere.py', '--work-dir', 'run.pth'],
    'train to an archive': [str(DEMO), '--work-dir', 'run.pth.tar'],
    'train as an option': [str(DEMO), '--cfg-options', 'work_dir=run.TAR'],
    'train to a folder in a file': ['nowhere.py', '--work-dir', 'run.tgz/first'],
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
    'experiment benchmark to a page': ['--out', 'speed.json', '--report', 'nowhere.json'],
    'experiment analyze': ['cka', *NOT_THERE, '--out', 'cka.png'],
    'experiment draw-method': ['method.txt'],
    'experiment early-exits': ['--out', 'exits.md'],
    'experiment paper-tables': ['--out', 'tables.md'],
    'experiment study': ['table1', '--work-dir', 'study.json'],
    'experiment reproduce': ['table8/swin_t', '--out', 'bundle.json'],
    'experiment reproduce to an archive': ['table8/swin_t', '--out', 'b.zip'],
    'experiment make-sources': ['--out', 'sources.npz'],
    'experiment lm-toy': ['--out', 'toy.gguf'],
    'init': [*NOT_THERE, '--out', 'mine.yaml'],
    'experiment demo-data to an archive': ['data.zip'],
    'experiment demo-data': ['data', '--preview', 'scenes.jpg'],
    'experiment quickstart': ['--data', 'data.json'],
}


@pytest.mark.parametrize('case', WRONG)
def test_another_suffix_is_refused_before_any_work(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = case.partition(' to ')[0].partition(' as ')[0].split()
    try:
        code = main([*words, *WRONG[case]])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert any(text in said for text in ('must end in', 'is the name of a file', 'would say that its SHA-256')), said
    assert not any(tmp_path.iterdir())


def test_a_tilde_that_the_shell_left_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.json').touch()
    named = a_file('~/a.json'), a_folder('~/run'), file_ending('.pth')('~/x.pth'), require_suffix('~/x.md', '.md')
    assert [path.relative_to(tmp_path).as_posix() for path in named] == ['a.json', 'run', 'x.pth', 'x.md']


def test_a_file_is_written_where_the_tilde_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    write_atomically('~/x.pth', pickled({'a': torch.ones(1)}))
    assert read_checkpoint('~/x.pth')['a'] == 1
    assert [p.name for p in tmp_path.iterdir()] == ['home']


@pytest.mark.parametrize('named', ['~/x.pth', 'file://{}/x.pth', '{}/../{name}/x.pth'])
def test_a_checkpoint_is_not_converted_over_itself_however_it_is_named(named, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    file = tmp_path / 'x.pth'
    torch.save({'norm.weight': torch.ones(2)}, file)
    before = file.read_bytes()
    assert main(['convert', named.format(tmp_path, name=tmp_path.name), str(file), '--force']) == 2
    assert 'is read and would be written over' in capsys.readouterr().err
    assert file.read_bytes() == before


def test_no_folder_a_folder_and_a_file_in_the_way_are_refused_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.onnx').mkdir()
    (tmp_path / 'b').touch()
    for out, said in (('a.onnx', 'is a folder'), ('b/x.onnx', 'b is a file, so there can be no folder')):
        with pytest.raises(SystemExit):
            main(['onnx', *NOT_THERE, out])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize('words', ['train c.py --work-dir', 'onnx c.py x.pth', 'predict --onnx'])
def test_a_place_that_cannot_be_reached_is_told_in_a_sentence(words, capsys):
    place = f'{"x" * 300}{".onnx" if "onnx" in words else ""}'
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), f'/tmp/{place}/y{".onnx" if "onnx" in words else ""}'])
    assert ended.value.code == 2 and 'cannot be reached: File name too long' in capsys.readouterr().err


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


READ = ['experiment benchmark --report', 'experiment analyze droppath --results', 'experiment early-exits --reuse']


@pytest.mark.parametrize('words', READ)
@pytest.mark.parametrize('place', ['a', 'nowhere.json'])
def test_a_file_that_is_read_is_there_and_no_folder(words, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a').mkdir()
    with pytest.raises(SystemExit):
        main([*words.split(), place])
    assert re.search(f'argument --.*: (there is no {place}|{place} is a folder)', capsys.readouterr().err)


def test_every_number_of_the_command_line_has_bounds():
    bare = []
    for file in [*PACKAGE.glob('commands/*.py'), *PACKAGE.glob('experiments/commands/*.py')]:
        for node in ast.walk(ast.parse(file.read_text())):
            types = (
                {ast.unparse(k.value) for k in node.keywords if k.arg == 'type'} if isinstance(node, ast.Call) else ()
            )
            bare += [ast.unparse(node.args[0]) for _ in types & {'int', 'float'}] if types else []
    assert bare == ["'--local_rank'"], 'a launcher writes that one'


@pytest.mark.parametrize('name', ['v1.2', 'swin_t.run3', 'runs/2026.11.26', '.hidden', 'a.b', '.', 'lr_0.001', 'x.old'])
def test_a_folder_may_have_a_dot_in_its_name(name):
    assert require_folder_name(name) == Path(name)


def test_a_folder_that_is_there_may_be_called_as_it_is(tmp_path):
    (tmp_path / 'scenes.zip').mkdir()
    assert require_folder_name(tmp_path / 'scenes.zip' / 'run')


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


@pytest.mark.parametrize(
    ('name', 'digest'),
    [
        ('a-0123456a.pth', '0123456a'),
        ('a-59334922.pth', '59334922'),
        ('a-20220504.pth', None),
        ('epoch-00000001.pth', None),
        ('step-00012000.pth', None),
    ],
)
def test_numbers_filled_up_with_zeros_and_dates_are_no_digests(name, digest):
    found = DIGEST.search(name)
    assert (found and found[1]) == digest
