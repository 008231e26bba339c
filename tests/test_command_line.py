"""The command line: what `scalenet` says of itself, how it ends, and that the documents name no command it lacks."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, scalenet

from scalenet_mm.commands.main import COMMANDS, main
from scalenet_mm.experiments.commands import COMMANDS as EXPERIMENTS

DIGITS = str(ROOT / 'configs/demo/deit_digits.py')
SCALED = str(ROOT / 'configs/scalenet_swin_t_100e.py')
EVERY = [(name,) for name in COMMANDS] + [('experiment', name) for name in EXPERIMENTS]


def call(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(scalenet(*words), capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_help_fits_a_screen_and_says_each_subcommand_in_one_line():
    lines = call('--help').stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert all(sum(line.split()[:1] == [name] for line in lines) == 1 for name in COMMANDS)


def test_help_imports_neither_torch_nor_openmmlab():
    code = (
        "import sys; sys.argv = ['scalenet', '--help']\n"
        'from scalenet_mm.commands.main import main\n'
        'try: main()\n'
        'except SystemExit: pass\n'
        "assert not {'torch', 'mmengine', 'numpy'} & set(sys.modules)\n"
    )
    # as a console script: sys.argv[0] ends in the command's name before the package is imported
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    'library', ['mmdet', *(pytest.param(x, marks=pytest.mark.slow) for x in ('mmseg', 'mmpretrain'))]
)
def test_what_libraries_print_while_they_are_imported_is_no_part_of_the_output(library):
    """A program that reads JSON from a command finds nothing before it, whichever library the command imports late."""
    code = f"from scalenet_mm.runner.built import Known; print(len(Known('{library}').by_name))"
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r'\d+\n', done.stdout) and 'OneDL' not in done.stderr


@pytest.mark.parametrize('words', [['--help'], ['--version'], ['experiment', '--help'], ['predct']], ids=' '.join)
def test_the_console_script_and_the_package_as_a_module_say_the_same(words):
    module, function = re.search(r"'scalenet = ([\w.]+):(\w+)'", (ROOT / 'setup.py').read_text()).groups()
    code = f"import sys; sys.argv[0] = 'scalenet'; from {module} import {function} as main; sys.exit(main())"
    script = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, cwd=ROOT)
    told = call(*words)
    assert (script.returncode, script.stdout, script.stderr) == (told.returncode, told.stdout, told.stderr)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['train', 'test'])
def test_the_tools_that_stayed_are_the_subcommands_under_their_own_names(name):
    script = subprocess.run(
        [sys.executable, f'tools/{name}.py', '--no-such-option'], capture_output=True, text=True, cwd=ROOT
    )
    told = call(name, '--no-such-option')
    assert script.returncode == told.returncode == 2 and f'scalenet {name}: error: ' in told.stderr
    assert script.stderr.startswith(f'usage: {name}.py ') and f'\n{name}.py: error: ' in script.stderr
    assert script.stderr.split('error: ')[1] == told.stderr.split('error: ')[1]


@pytest.mark.parametrize('words', [['predict', 'a', 'b', 'c'], ['experiment', 'study', 'all']], ids=' '.join)
def test_a_library_that_is_missing_is_named_in_one_line(words):
    code = (
        "import sys; sys.argv[0] = 'scalenet'; sys.modules['torch'] = None\n"
        'from scalenet_mm.commands.main import main\n'
        'sys.exit(main())\n'
    )
    done = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, cwd=ROOT)
    line = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(line) == 1 and 'torch' in line[0]
    assert line[0].startswith(f'scalenet {" ".join(words[: 1 + (words[0] == "experiment")])}: error: ')


@pytest.mark.slow
def test_a_name_asked_for_below_the_command_line_brings_everything():
    code = "import sys; sys.argv = ['scalenet']; import scalenet_mm; assert scalenet_mm.scale and scalenet_mm.load"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


@pytest.mark.parametrize('words', EVERY, ids=' '.join)
def test_every_subcommand_tells_its_usage(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['scalenet'])
    try:
        code = main([*words, '--help'])
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr().out
    assert not code and f'scalenet {" ".join(words)}' in told


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['predct'], r"scalenet: error: there is no 'predct'; did you mean predict\?"),
        (['trian', 'cfg.py'], r"scalenet: error: there is no 'trian'; did you mean train\?"),
        (['experiment', 'studdy'], r"scalenet experiment: error: there is no 'studdy'; did you mean study\?"),
        (
            ['experiment', 'quikstart'],
            r"scalenet experiment: error: there is no 'quikstart'; did you mean quickstart\?",
        ),
        (['experiment', 'quickstart', '--task', 'dett'], r"invalid choice: 'dett' \(choose from '?cls'?, '?det'?"),
        (['train', DIGITS, '--cfg-options', 'modle.backbone.x=1', '--dry-run'], r"'modle', and 'model' is near"),
        (['train', DIGITS, '--cfg-options', 'trian_cfg.max_epochs=1'], r"'trian_cfg', and 'train_cfg' is near"),
        (['train', DIGITS, '--cfg-options', 'model.bakcbone.depth=2'], r"no 'bakcbone', and 'backbone' is near"),
        (['test', DIGITS, 'a.pth', '--cfg-options', 'test_cfgs.fp16=True'], r"'test_cfgs', and 'test_cfg' is near"),
        (
            ['inspect', SCALED, '--cfg-options', 'model.backbone.embed_dim=48'],
            r"\['embed_dim'\] \(near are: embed_dims",
        ),
        (['inspect', DIGITS, '--cfg-options', 'modle.backbone.x=1'], r"'modle', and 'model' is near"),
        (['inspect', 'nothing.py'], r'scalenet inspect: error: There is no config nothing\.py'),
        (['predict', 'no.jpg', 'c.py', 'c.pth'], r'scalenet predict: error: There is no image no\.jpg'),
        (['run', 'nothing'], r'scalenet run: error: SCRIPT must be a Python file'),
        (['train', DIGITS, '--cfg-options', 'max_epochs'], r'--cfg-options: takes key=value, .* got max_epochs'),
        (['inspect', SCALED, '--cfg-options', 'a=dict(b=1,c=2)'], r'no dict\(\.\.\.\), whose keys .* got a=dict\('),
        (['inspect', SCALED, '--cfg-options', 'a=dict(b=1)'], r'no dict\(\.\.\.\), whose keys .* got a=dict\('),
        (['train', DIGITS, '--cfg-options', 'load_from='], r'--cfg-options load_from= is empty: name a file or folder'),
        (['experiment', 'reproduce', 'table8/swin_t', '--cfg-options', 'a'], r'takes key=value, .* got a$'),
        (
            ['train', str(ROOT / 'requirements.txt')],
            r'requirements.txt is no config; its name must end in \.py, \.json or',
        ),
        (['predict', '', 'c.py', 'c.pth'], r'the argument after predict is empty'),
        (['delta', 'push', 'd', 'out', '--license='], r'the argument after d out is empty'),
        (['convert', 'a.pth', 'b.txt'], r'scalenet convert: error: argument DST: b.txt must end in'),
    ],
)
def test_what_a_user_can_mend_ends_with_2_and_one_line(words, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['scalenet'])
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr().err
    assert code == 2 and re.search(says, told) and 'Traceback' not in told


@pytest.mark.slow
def test_another_projects_script_ends_as_it_would_by_itself(tmp_path):
    script = tmp_path / 'a script.py'
    script.write_text('import sys\nsys.exit("boom")\n')
    alone, ours = (
        subprocess.run([*words, script], capture_output=True, text=True)
        for words in ([sys.executable], scalenet('run'))
    )
    assert (ours.returncode, ours.stdout) == (alone.returncode, alone.stdout) == (1, '')
    assert ours.stderr.splitlines()[-1] == alone.stderr.strip() == 'boom'


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    with subprocess.Popen(
        scalenet('inspect', SCALED), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert not process.stderr.read()
        assert process.wait(120) == 128 + 13


def test_a_table_is_all_that_is_printed():
    assert 'mmengine' not in call('inspect', SCALED).stdout


def test_an_empty_argument_is_refused_and_none_is_left_out_for_it(tmp_path, capsys):
    """`--resume "$LAST"` without LAST would start anew."""
    assert main(['train', DIGITS, '--work-dir', str(tmp_path / 'run'), '--resume', '', '--dry-run']) == 2
    assert '--resume is empty, as a variable that is not set is' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'text', 'says'),
    [
        ('list.json', '[]', 'list.json is no config; it must hold settings by name, and holds a list'),
        ('broken.yaml', 'a: [1', 'broken.yaml cannot be read as yaml'),
    ],
)
@pytest.mark.parametrize('words', [['train'], ['inspect']])
def test_a_config_that_is_none_is_told_in_a_sentence(words, name, text, says, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert main([*words, str(tmp_path / name)]) == 2
    assert says in capsys.readouterr().err


def test_the_documents_name_no_command_that_is_not_there():
    pages = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')]
    named = {(m[1], m[2]) for p in pages for m in re.finditer(r'`scalenet ([a-z-]+)(?: ([a-z-]+))?', p.read_text())}
    assert len(named) > 10
    assert {first for first, _ in named} <= COMMANDS.keys()
    assert {second for first, second in named if first == 'experiment' and second} <= EXPERIMENTS.keys()
