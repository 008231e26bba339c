"""Checks, training, evaluation and bundle of a plan. What a step leaves on the disk says that it is done."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ...checkpoint.fetching import fetch_hub, fetch_url
from ...checkpoint.strict import CheckpointError
from ...checkpoint.writing import write_atomically
from ...file_names import local_path
from ...one_run import one_run
from ...runner.preflight import preflight
from .bundle import BUNDLE, LOG, METRICS, STEPS, WORK, plan_config, sha256, write_bundle
from .instructions import as_dict
from .plan import ROOT, Plan, wherever
from .public import other_counts


def check(plan: Plan) -> Path | None:
    """Everything that can be known before the first step: GPUs, data, and the checkpoint, which is fetched if need be.

    Returns:
        The checkpoint's file; None where the run starts from random weights, or from what the libraries find by
        themselves.

    Raises:
        SystemExit: with what is wrong and the way out.
    """
    _check_gpus(plan)
    _check_data(plan)
    return fetch(plan)


def _check_data(plan: Plan) -> None:
    cfg = plan.cfg.copy()
    if plan.checkpoint:
        cfg.merge_from_dict({plan.checkpoint.key: None})  # `fetch` knows more of it
    try:
        preflight(cfg, ('train', 'val', 'test') if plan.trains else ('test',))
    except SystemExit as e:
        raise SystemExit(str(e).rpartition('\n')[0]) from None  # --no-preflight is no option here
    found = list(other_counts(plan.data, plan.data_root, plan.trains)) if plan.data else []
    if found and not plan.other_data:
        raise SystemExit(
            f'Not started: {plan.data_root} is not the whole {plan.data.name}.\n'
            + '\n'.join(found)
            + '\nFetch the rest (this command without --run or --check prints how); --other-data goes on with what is '
            'there, and the bundle says so.'
        )


def _check_gpus(plan: Plan) -> None:
    there = torch.cuda.device_count()
    if there == 0 and not plan.cpu:
        hours = f' The paper took {plan.hours} hours on 8 GPUs.' if plan.hours else ''
        raise SystemExit(
            f'Not started: {plan.gpus} GPUs are wanted and there is none.{hours} --gpus N --cpu runs N processes on '
            f'the CPU; python tools/train.py {plan.file} --dry-run says how long that takes.'
        )
    if 0 < there < plan.gpus:
        size = plan.cfg.train_dataloader.batch_size
        raise SystemExit(
            f'Not started: {plan.gpus} GPUs are wanted and there are {there}. With --gpus {there} a step has '
            f'{there * size} images instead of {plan.batch}: add --auto-scale-lr, or --cfg-options '
            f'train_dataloader.batch_size={plan.batch // there} where memory allows.'
        )


def fetch(plan: Plan) -> Path | None:
    """The checkpoint as a file whose SHA-256 begins as its name says.

    Raises:
        SystemExit: if it is not there, cannot be fetched, or is another file.
    """
    if plan.checkpoint is None or plan.checkpoint.scheme not in ('', 'file', 'http', 'https', 'hf'):
        return None
    address, digits = plan.checkpoint.address, plan.checkpoint.digits
    try:
        if address.startswith('hf://'):
            path = fetch_hub(address)
        else:
            path = fetch_url(address) if plan.checkpoint.scheme.startswith('http') else local_path(address)
    except (CheckpointError, ImportError) as e:
        raise SystemExit(f'Not started: {e}. Then name it: --checkpoint FILE.') from e
    if not path.is_file():
        raise SystemExit(f'Not started: there is no checkpoint {path}; name it with --checkpoint FILE.')
    found = sha256(path)
    if digits and not found.startswith(digits):
        raise SystemExit(
            f'Not started: {path} is not the published file: its SHA-256 begins with {found[: len(digits)]}, that of '
            f'{plan.checkpoint.name} with {digits}. Delete it and fetch it again, or name another with --checkpoint '
            'FILE.'
        )
    return path.absolute()


def run(plan: Plan, folder: Path) -> Path:
    """Checks, trains, tests and writes the bundle; what is done already is not done again.

    Args:
        folder: receives ``work/`` (checkpoints, deltas), ``console.log``, ``steps.json``, ``metrics.json`` and
            ``bundle/``.

    Returns:
        The bundle's folder.

    Raises:
        SystemExit: if a check or a step fails; the same call continues.
    """

    folder = folder.absolute()
    settings, known = _settings(plan), folder / 'settings.json'
    theirs = json.loads(known.read_text()) if known.is_file() else {}
    if differ := [name for name in theirs if theirs[name] != settings.get(name)]:
        told = '; '.join(f'{name} was {theirs[name]!r} and is {settings.get(name)!r}' for name in differ)
        raise SystemExit(
            f'{folder} holds a run with other settings ({known.name}: {told}); name another folder with --out, or '
            'delete it.'
        )
    if (folder / BUNDLE).is_dir():
        print(f'{plan.name} is done already: {folder / BUNDLE}')
        return folder / BUNDLE
    checkpoint = check(plan)
    as_dict(plan)  # what the bundle will say can be counted
    with one_run(folder):
        write_atomically(known, json.dumps(settings, indent=1).encode())
        work = folder / WORK
        start = checkpoint or (plan.checkpoint and plan.checkpoint.address)
        tested = work / plan.last if plan.trains else start
        if plan.trains and not tested.is_file():
            train = plan.train(str(work), start and str(start))
            at = train.index('--cfg-options')
            step('train', [*train[:at], '--resume', *train[at:]], folder)
            require(tested, 'training')
        if not (folder / METRICS).is_file():
            unfinished = folder / f'unfinished_{METRICS}'
            step('test', plan.test(str(tested), str(work), str(unfinished)), folder)
            require(unfinished, 'evaluation')
            os.replace(unfinished, folder / METRICS)
        return write_bundle(plan, folder, checkpoint)


def _settings(plan: Plan) -> dict[str, Any]:
    """What a run's folder must agree in, to be continued or called done."""
    kept = dict(name=plan.name, options=list(plan.options), extra=list(plan.extra), gpus=plan.gpus, seed=plan.seed)
    kept['config_sha256'] = hashlib.sha256(wherever(plan_config(plan), plan.data_root).encode()).hexdigest()
    if start := plan.checkpoint:
        local = local_path(start.address) if start.scheme in ('', 'file') else None
        kept['checkpoint'] = start.name
        kept['checkpoint_sha256'] = sha256(local) if local and local.is_file() else None
    return kept


def step(name: str, command: Sequence[str], folder: Path) -> None:
    """Runs a tool, shown and logged; writes down how it ended.

    Raises:
        SystemExit: if it fails.
    """
    print(f'[{name}] {shlex.join(command)}', flush=True)
    begin, log = time.time(), folder / LOG
    environment = {**os.environ, 'SCALENET_ENV': sys.prefix}  # dist_*.sh take their Python from it
    with log.open('a') as file:
        process = subprocess.Popen(
            [_here(word) for word in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        try:
            for line in process.stdout:
                print(line, end='', flush=True)
                file.write(line)
            process.wait()
        except BaseException as stop:
            if not isinstance(stop, KeyboardInterrupt):  # which has reached the tool already
                process.terminate()
            for line in process.stdout:  # a full pipe would keep it from ending
                with suppress(OSError):
                    file.write(line)
            process.wait()
            if not isinstance(stop, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            process.stdout.close()
            _note(folder, dict(step=name, seconds=round(time.time() - begin, 1), exit=process.returncode))
    if process.returncode:
        raise SystemExit(
            f'The step {name} ended with status {process.returncode} ({log}). Put right what it says; the same command '
            'continues from the last checkpoint.'
        )


def _here(word: str) -> str:
    """A word of a command that was written for the repository's folder, from any folder."""
    if word == 'python':
        return sys.executable
    return str(ROOT / word) if word.startswith(('tools/', 'configs/')) or os.path.isfile(ROOT / word) else word


def _note(folder: Path, entry: dict) -> None:
    path = folder / STEPS
    steps = json.loads(path.read_text()) if path.is_file() else []
    write_atomically(path, json.dumps([*steps, entry], indent=1).encode())


def require(path: Path, step: str) -> None:
    """Raises SystemExit if a step that ended well has not written its file."""
    if not path.is_file():
        raise SystemExit(f'The {step} ended, but has not written {path}. Its log: {LOG}.')
