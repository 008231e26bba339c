"""``scalenet SUBCOMMAND ...``: runs a subcommand's module; nothing else is imported before it is needed."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from ..cores import prepare_threads
from ..one_run import SIGNALS, Stopped, ending_cleanly, leave
from ..version import __version__

COMMANDS = {
    'init': 'a short config that scales your own model, proved before it is there',
    'train': 'train a model of any config (tools/train.py)',
    'test': 'evaluate a checkpoint or an ONNX file (tools/test.py)',
    'predict': 'boxes, masks, label maps or classes of images: a picture and a JSON file',
    'compare': 'two models side by side on the same images',
    'delta': 'increments as files: export, info, verify, apply, push',
    'convert': "a checkpoint of any dialect with OpenMMLab's names",
    'inspect': 'layer map, parameters by role, FLOPs and size of a scaled model',
    'onnx': 'a classifier, detector or segmentor as one ONNX file, checked',
    'lm-train': 'scale a causal language model and fine-tune it',
    'lm-eval': 'evaluate it zero-shot on the tasks of Table X',
    'run': "another project's script, with scalenet_mm imported first",
    'doctor': 'what works in this Python environment, and how to mend the rest',
    'experiment': 'what exists to check the paper: studies, figures, benchmarks, tables',
}
ELSEWHERE = {'experiment': 'scalenet_mm.experiments.commands'}  # by name: nothing outside experiments imports it
ALONE = {'doctor', 'experiment'}  # start without torch
# gpu-check: what it starts decides for itself
NO_LOADER = {'predict', 'compare', 'delta', 'convert', 'inspect', 'onnx', 'doctor', 'benchmark', 'cluster', 'gpu-check'}
USER_ERRORS = (ImportError, OSError, ValueError, RuntimeError)
NOT_CAUGHT = {'train', 'test', 'run'}  # the traceback of a run belongs to it, but for a file that is refused
STOPPED = {128 + number for number in (signal.SIGINT, *SIGNALS)}
BROKEN_PIPE = 128 + signal.SIGPIPE  # what a shell says of a command that SIGPIPE ended
NOT_OURS = {'run'}  # another project's script keeps its own rules


def process(argv: Sequence[str] | None = None, called: str | None = None) -> NoReturn:
    """A process that does nothing else than ``main``: ends with its status, once stopped as ``leave`` says."""
    try:
        status = main(argv, called)
    except Stopped as end:
        status = end.code
    if status in STOPPED:
        leave(status)  # here, where nothing of the stopped run is held by its traceback
    sys.exit(status)


def main(argv: Sequence[str] | None = None, called: str | None = None) -> int:
    """The command line within any program.

    Returns:
        Its status: 2, with one line on stderr, where a user can mend what is wrong; 130 after Ctrl-C.

    Raises:
        SystemExit: argparse's; and Stopped where a signal told the program to end.
    """
    return dispatch('scalenet', __package__, COMMANDS, sys.argv[1:] if argv is None else argv, called)


def dispatch(prog: str, package: str, table: Mapping[str, str], argv: Sequence[str], called: str | None = None) -> int:
    """Runs the subcommand that ``argv`` begins with.

    Args:
        prog: what was typed so far.
        package: where the modules of the subcommands are, each with ``main(argv)``.
        table: one line about each subcommand.
        called: what usage and errors call the subcommand, by default ``prog`` and its name.
    """
    width = max(map(len, table))
    listed = '\n'.join(f'  {name:{width}}  {text}' for name, text in table.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f'{prog} [-h] [--version] SUBCOMMAND ...',
        epilog=f'{listed}\n\n{prog} SUBCOMMAND --help tells more.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'scalenet_mm {__version__}')
    if not argv or argv[0].startswith('-'):
        parser.parse_args(argv or ['--help'])
    name, *rest = argv
    if name not in table:
        near = get_close_matches(name, table, n=1)
        parser.error(
            f'there is no {name!r}{f"; did you mean {near[0]}?" if near else ""} Choose from: {", ".join(table)}'
        )
    if name not in NOT_OURS:  # mmengine falls back to running what a file holds
        os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    if name != 'experiment':  # it comes here again
        prepare_threads(name not in NO_LOADER)
    called = sys.argv[0] = called or f'{prog} {name}'  # argparse's prog
    if name not in NOT_OURS and (where := next((i for i, word in enumerate(rest) if is_empty(word)), None)) is not None:
        before = ' '.join(rest[:where][-2:])
        return refused(
            called,
            f'the argument after {before or name} is empty, as a variable that is not set is; give it a value, or '
            'leave it out with its option.',
        )
    try:
        if name not in ALONE:
            import_module('scalenet_mm.registration')
        module = import_module(ELSEWHERE.get(name, f'{package}.{name.replace("-", "_")}'))
        with ending_cleanly():
            status = module.main(rest) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f'{called}: stopped.', file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as end:
        if name in NOT_OURS or not isinstance(end.code, str):
            raise
        return refused(called, end.code)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and no_reader_is_left():
            return BROKEN_PIPE
        told = getattr(error, 'told', False)  # of ours, whatever the command
        if not told and (name in NOT_CAUGHT or not isinstance(error, USER_ERRORS)):
            raise
        return refused(called, error.args[0] if isinstance(error, KeyError) else str(error))


def no_reader_is_left() -> bool:
    """Whether what reads our output has enough, as ``| head``; then Python is kept from trying again when it ends."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def is_empty(word: str) -> bool:
    """Whether an argument, or the value of ``--option=value``, says nothing."""
    return not word.strip() or (word.startswith('--') and word.endswith('='))


def refused(prog: str, why: str) -> int:
    """One line like argparse's own."""
    print(f'{prog}: error: {why}', file=sys.stderr)
    return 2


def command_parser(doc: str, **options) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring: its first paragraph, then the options, then the rest."""
    head, _, usage = doc.partition('\n\n')
    options = dict(description=head, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter) | options
    return argparse.ArgumentParser(**options)
