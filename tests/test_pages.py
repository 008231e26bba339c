"""What README.md and docs/*.md say to type is typed: every block of a page runs as it stands, in the page's order.

What is not run says why beside it (`pages.py` has the markers) and is read: its syntax, and each command's options.
"""

import ast
import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from pages import blocks_of

from scalenet_mm.commands import main as scalenet

PAGES = {str(p.relative_to(ROOT)): p.read_text() for p in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]}
HEREDOC = re.compile(r"<<'(\w+)'(.*?)^\1$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r'`((?:scalenet|python tools/\w+\.py|tools/\w+\.(?:py|sh)|bash tools/\w+\.sh) [^`]+)`')


def commands(text: str):
    """The words of each command of ours in lines of bash; what a usage line puts in brackets counts as given."""
    text = HEREDOC.sub('', text).replace('\\\n', ' ').replace('\\|', '|')
    for line in text.splitlines():
        for command in re.split(r' && | \| |; ', line):
            try:
                words = shlex.split(command, comments=True)
            except ValueError:  # an apostrophe of a comment that a split cut off
                continue
            words = [w.strip('[]').split('|')[0] for w in words]
            words = [w for w in words if w not in ('...', '')]
            while words and ('=' in words[0] or words[0] in ('do', 'bash', 'python')):
                words = words[1:]
            if words and (words[0] == 'scalenet' or words[0].startswith('tools/')):
                yield words


@cache
def help_of(*words: str) -> str:
    """What a command prints at ``--help``."""
    out, argv = io.StringIO(), sys.argv[:]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            sys.argv[:] = [*words, '--help']
            if words[0] == 'scalenet':
                status = scalenet.main(sys.argv[1:])
            else:
                status = runpy.run_path(str(ROOT / words[0]), run_name='__main__')
        except SystemExit as end:
            status = end.code
        finally:
            sys.argv[:] = argv
    assert not isinstance(status, int) or status == 0, out.getvalue()[-300:]
    return out.getvalue()


def wrong(words: list[str]) -> list[str]:
    """The options that a command does not have."""
    if words[0].startswith('tools/') and not (ROOT / words[0]).is_file():
        return words[:1]
    if words[0].endswith('.sh'):
        return []
    names = next((i for i, w in enumerate(words[1:], 1) if not re.fullmatch('[a-z][a-z-]*', w)), len(words))
    told = help_of(*words[:names])
    options = [w.partition('=')[0] for w in words if re.match('--?[a-z]', w)]
    return [o for o in options if not re.search(rf'(?<![\w-]){o}(?![\w-])', told)]


@pytest.mark.parametrize('page', PAGES)
def test_every_block_of_a_page_can_be_read_and_its_commands_have_their_options(page):
    for block in blocks_of(page, PAGES[page]):
        for code in {block.code, block.runs}:
            if block.language == 'python':
                ast.parse(code, str(block))
                continue
            read = subprocess.run(['bash', '-n'], input=code, text=True, capture_output=True)
            assert read.returncode == 0, f'{block}: {read.stderr}'
            unknown = [(shlex.join(w), o) for w in commands(code) if (o := wrong(w))]
            assert not unknown, f'{block}: {unknown}'


@pytest.mark.parametrize('page', [page for page in PAGES if page != 'docs/quickstart.md'])
def test_commands_within_the_text_of_a_page_have_their_options(page):
    assert not [(c, o) for c in INLINE.findall(PAGES[page]) for w in commands(c) if (o := wrong(w))]


@pytest.mark.slow
@pytest.mark.parametrize('page', [p for p in PAGES if any(not b.why_not for b in blocks_of(p, PAGES[p]))])
def test_every_block_of_a_page_runs_as_it_stands(page, tmp_path):
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('the tracked files are those of a git checkout')
    for name in (n for n in listed.stdout.split('\0') if (ROOT / n).is_file()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    environment = {**os.environ, 'PATH': path, 'PYTHONPATH': str(tmp_path)}
    run = subprocess.run(
        [sys.executable, 'tests/pages.py', page],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('<!-- parsed only: -->\n```bash\nls\n```\n', 'says nothing'),
        ('<!-- not run: slow -->\n```bash\nls\n```\n', "no marker 'not run'"),
        ('<!-- slow -->\n```bash\nls\n```\n', 'is no marker'),
        ('<!-- parsed only: slow -->\n\n```bash\nls\n```\n', 'on the line before'),
        ('<!-- file: a.py -->\n', 'before no block'),
        ('<!-- with: cat -> dog -->\n```bash\nls\n```\n', 'that the block has'),
        ('```sh\nls\n```\n', 'write ```bash or ```python'),
        ('* so:\n  ```python\n  1\n  ```\n', 'at the margin'),
        ('~~~python\n1\n~~~\n', 'write ```bash or ```python'),
    ],
)
def test_a_block_without_a_known_marker_or_in_another_notation_is_an_error(text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        list(blocks_of('page.md', text))


def test_markers_say_what_is_run_what_is_a_file_and_what_is_hidden():
    text = '<!-- python:\nx = 1\n-->\n<!-- with: 2 -> x -->\n```python\ny = 2\n```\n'
    text += '<!-- file: c.py -->\n```python\nz\n```\n'
    hidden, shown, file = blocks_of('page.md', text)
    assert (hidden.line, hidden.runs, shown.code, shown.runs) == (2, 'x = 1\n', 'y = 2\n', 'y = x\n')
    assert (file.file, file.line) == ('c.py', 10)


def test_a_wrong_option_subcommand_or_script_in_a_page_is_found():
    assert wrong(['scalenet', 'train', 'CONFIG', '--dry-runn']) == ['--dry-runn']
    assert wrong(['tools/trian.py', 'CONFIG']) == ['tools/trian.py']
    with pytest.raises(AssertionError, match='export'):
        wrong(['scalenet', 'delta', 'exprt', 'CKPT', '--base', 'B'])
