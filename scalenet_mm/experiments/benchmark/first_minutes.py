"""A GPU's first minutes: the steps of ``gpu_steps``, each result written when it is there.

What has to run at all goes first, its chains side by side (a start takes longer than a hundred steps); then speeds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from threading import Event, Lock
from typing import Any

from ...checkpoint.writing import write_atomically
from .gpu_steps import ROOT, Size, Step, chains, prepare, speeds
from .loaders import FAMILIES
from .machine import describe

RESULTS = 'gpu_check.json'
PACKAGE = Path(__file__).parents[3]  # the folder that this package is imported from
LEAST, GRACE = 20, 10  # seconds: that are left for a step to be begun; that one has to end
FOR_SPEED = 0.5  # of the time: what the chains leave to the speeds


def run(size: Size, out: Path, minutes: float, tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Runs the steps, each with what is left of the time; writes ``out/gpu_check.json`` after each.

    Returns:
        A record a step: ``status`` is ``'done'``, ``'failed'``, ``'out of time'`` or ``'not run'``.
    """
    begin, records = time.monotonic(), {}
    end = begin + 60 * minutes
    result = dict(started=time.strftime('%Y-%m-%d %H:%M:%S'), machine=describe(size.device), minutes=minutes)
    (out / 'logs').mkdir(parents=True, exist_ok=True)
    together, alone = chains(size, out), speeds(size, out)
    numbers = {step.name: i for i, step in enumerate([*chain.from_iterable(together.values()), *alone], 1)}
    writing, stopped = Lock(), Event()

    def follow(todo: Sequence[Step], until: float, lacks: str = '') -> None:
        for step in todo:
            if stopped.is_set():
                return
            left = until - time.monotonic()
            if lacks:
                record = dict(status='failed', error=lacks)
            elif step.needs and records[step.needs]['status'] != 'done':
                record = dict(status='not run', why=f'{step.needs} is not done')
            elif step.compiles and not has_compiler():
                record = dict(status='not run', why='torch.compile needs a C compiler: put gcc on PATH or set CC')
            elif left < LEAST:
                record = dict(status='not run', why='no time was left')
            else:
                record = carry_out(step, left, out / 'logs' / f'{numbers[step.name]:02}.log', stopped)
            with writing:
                records[step.name] = dict(step=step.name, command=as_typed(step.command, out), **record)
                result['steps'] = sorted(records.values(), key=lambda r: numbers[r['step']])
                write_atomically(out / RESULTS, json.dumps(result, indent=1).encode())
                told = ', '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' for k, v in record.items())
                left = max(0, end - time.monotonic()) / 60
                tell(f'[{len(records)}/{len(numbers)}] {step.name}: {told}; {left:.1f} min left')

    with ThreadPoolExecutor(size.at_once) as pool:
        try:
            followed = []
            for about, todo in together.items():
                lacks = prepared(about, size, out) if about in FAMILIES else ''
                followed.append(pool.submit(follow, todo, end - FOR_SPEED * (end - begin), lacks))
            for one in followed:
                one.result()
        except BaseException:  # told to end: nothing else is begun, and what runs ends
            stopped.set()
            raise
    follow(alone, end)
    return result['steps']


def prepared(family: str, size: Size, out: Path) -> str:
    """Prepares a family's chain; what hinders that, which is no reason to leave out the others."""
    try:
        prepare(family, size, out)
    except Exception as error:
        return f'its images, config or weights could not be made: {type(error).__name__}: {error}'
    return ''


def has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get('CC', ''), 'cc', 'gcc', 'clang') if name)


def as_typed(command: Sequence[str], out: Path) -> str:
    """A command without the places of this machine, whose record others read."""
    places = {str(out): 'OUT', sys.executable: 'python', str(ROOT): '.'}
    text = shlex.join(command)
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def carry_out(step: Step, seconds: float, log: Path, stopped: Event | None = None) -> dict[str, Any]:
    """Runs a step's command; what it printed is in ``log``. What it started ends with it.

    Args:
        stopped: ends the step when it is set.
    """
    stopped = stopped or Event()
    begin, environment = time.monotonic(), {**os.environ, 'SCALENET_ENV': sys.prefix}
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get('PYTHONPATH'))))
    record: dict[str, Any] = dict(log=log.name)
    with log.open('w') as file:
        process = subprocess.Popen(
            step.command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            while (code := process.poll()) is None and time.monotonic() < begin + seconds:
                if stopped.wait(0.1):
                    break
        finally:
            end_session(process)
    if code is None:
        record |= dict(status='not run', why='told to end') if stopped.is_set() else dict(status='out of time')
    else:
        record |= dict(status='failed', exit=code, error=what_failed(log)) if code else dict(status='done')
    record['seconds'] = round(time.monotonic() - begin, 1)
    try:
        return record | (step.told() if record['status'] == 'done' else {})
    except (OSError, ValueError, LookupError) as error:  # it has not written what it should have
        return record | dict(status='failed', error=f'{type(error).__name__}: {error}')


def what_failed(log: Path) -> str:
    """The last line that tells of an error, or that has letters at all."""
    lines = log.read_text(errors='replace').splitlines()
    told = [line for line in lines if re.search('[a-z]', line)]
    errors = [line for line in told if re.search(r'[Ee]rror\b', line)]
    return (errors or told or [''])[-1][:300]


def end_session(process: subprocess.Popen) -> None:
    """Ends a process that leads a session, and what is left of that: the workers of loaders, torchrun's processes."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
