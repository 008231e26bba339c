"""The one runner of the studies: jobs in processes of their own, a record each, pages of what is done."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ...checkpoint.writing import write_atomically
from ...one_run import ending_cleanly, one_run
from .stats import Records

RESULTS, RECORD = 'results.jsonl', 'record.json'


@dataclass(frozen=True, eq=False)
class Job:
    """One run.

    Attributes:
        row: key of the row.
        seed: of initialisation and data.
        digest: changes with any of its settings; a record of another digest is of another run.
        settings: what ``train`` needs to know beside the seed.
        cost: expected, relative to other jobs'.
        needs: the job whose checkpoint it starts from.
    """

    row: str
    seed: int
    digest: str
    settings: Any = None
    cost: float = 1.0
    needs: Job | None = None

    @property
    def key(self) -> tuple[str, int]:
        return self.row, self.seed

    @property
    def folder(self) -> str:
        return f'{self.row}/seed{self.seed}'


DONE, FAILED, DIVERGED = 'done', 'failed', 'diverged'  # how a run ended; only one that failed is run again


class Diverged(ArithmeticError):
    """A run whose loss is not a number: another try with the same seed would end the same way."""


Train = Callable[[Job, Path, str | None], dict[str, Any]]  # of a job, its folder and the checkpoint that it starts from


def read_results(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON lines file; a line that a killed process left half written is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def latest(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The last record of each row and seed."""
    return {(r['row'], r['seed']): dict(r) for r in records}


def records_of(jobs: Iterable[Job], root: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The records of jobs with the jobs' settings."""
    known = latest(read_results(root / RESULTS))
    return {j.key: known[j.key] for j in jobs if j.key in known and known[j.key]['digest'] == j.digest}


@contextmanager
def alone(root: Path) -> Iterator[Path]:
    """The results file, for one process at a time; a line that a killed one left half written is ended.

    Raises:
        SystemExit: if another process is running jobs in this folder.
    """
    file = root / RESULTS
    with one_run(root):
        text = file.read_bytes() if file.exists() else b''
        if text and not text.endswith(b'\n'):
            with file.open('ab') as out:
                out.write(b'\n')
        yield file


def conduct(
    jobs: list[Job],
    root: Path,
    train: Train,
    told: str,
    report: Callable[[Records], Iterable[Path]],
    *,
    run: bool = True,
    shown: Iterable[Job] = (),
    at_once: int = 1,
    devices: int = 0,
    again: str = 'the same command',
) -> int:
    """Runs jobs, writes the pages of what is done; returns the status that the command ends with.

    Args:
        report: writes pages of records and gives their files.
        run: whether jobs are run.
        shown: jobs beside these that the pages are of.
        again: what continues after an interruption.
    """
    if run:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends its runs too
        try:
            run_all(jobs, root, train, told, at_once, devices)
        except KeyboardInterrupt:
            print(f'\nStopped; {again} continues.', file=sys.stderr)
            return 130
    records = records_of([*jobs, *shown], root)
    left_out = len(latest(read_results(root / RESULTS))) - len(records)
    if left_out:
        print(f'{left_out} runs are of other rows, seeds or settings: left out.')
    written = list(report(records)) if records else []
    for file in written:
        print(f'wrote {file}')
    failed = [r for j in jobs if (r := records.get(j.key)) and r['status'] != DONE]
    for record in failed:
        print(f'FAILED: {record["row"]} seed {record["seed"]}: {record["error"]}', file=sys.stderr)
    if not written and not failed:
        print(f'{root / RESULTS} has nothing to show of these rows yet; leave --report out.', file=sys.stderr)
        return 2
    return 1 if failed else 0


def run_all(
    jobs: list[Job],
    root: Path,
    train: Train,
    told: str = '{minutes:.1f} min',
    at_once: int = 1,
    devices: int = 0,
    tell: Callable[[str], None] = print,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs what is not done yet and appends each record to ``root/results.jsonl`` as it comes.

    A process that fails or dies costs its own run (and what starts from it), never the others; one that diverged is not
    run again. A run whose checkpoint is gone, as after the records were copied to another machine, is made again where
    others still need it.

    Args:
        train: runs one job; what it returns is the record. ``'checkpoint'``, relative to ``root``, is for the jobs that
            need it.
        told: what is printed of a record.
        at_once: processes at a time.
        devices: GPUs to spread them over; 0 for the CPU.

    Returns:
        The records of the jobs by (row, seed).
    """
    # importing mmengine asks for CUDA, after which a forked process cannot use it
    context = multiprocessing.get_context('spawn' if devices else 'forkserver')
    if not devices:
        context.set_forkserver_preload([__name__, train.__module__])  # the second where it is installed
    running: dict[Any, tuple[Job, int | None]] = {}
    with alone(root) as file:
        done = {k: r for k, r in records_of(jobs, root).items() if r['status'] != FAILED}
        for needed in {j.needs.key for j in jobs if j.needs and j.key not in done}.intersection(done):
            if done[needed]['status'] == DONE and not (root / done[needed].get('checkpoint', '')).exists():
                del done[needed]
        todo = [j for j in jobs if j.key not in done]
        tell(f'{len(jobs)} runs, {len(done)} of them done before.')
        work, begin = 0.0, time.time()

        def keep(job: Job, record: dict[str, Any]) -> dict[str, Any]:
            done[job.key] = record
            with file.open('a') as out:
                out.write(json.dumps(record) + '\n')
            return record

        try:
            while todo or running:
                for job in list(todo):
                    origin = done.get(job.needs.key) if job.needs else {'status': DONE}
                    if origin and origin['status'] != DONE:
                        todo.remove(job)
                        tell(f'{job.folder} left out: {job.needs.folder} {origin["status"]}')
                        if origin['status'] == DIVERGED:
                            keep(job, dict(_begun(job), status=DIVERGED, error=f'{job.needs.folder} diverged'))
                    elif origin and len(running) < at_once:
                        todo.remove(job)
                        taken = [device for _, device in running.values()]
                        device = min(range(devices), key=taken.count) if devices else None
                        source = str(root / origin['checkpoint']) if 'checkpoint' in origin else None
                        process = context.Process(target=_child, args=(train, job, root, source, device))
                        process.start()
                        running[process] = job, device
                time.sleep(0.2)
                for process in [p for p in running if not p.is_alive()]:
                    job, _ = running.pop(process)
                    record = keep(job, _record(job, root, process.exitcode))
                    work += job.cost
                    left = sum(j.cost for j in (*todo, *(j for j, _ in running.values())))
                    eta = timedelta(seconds=round((time.time() - begin) * left / work))
                    result = told.format_map(record) if record['status'] == DONE else f'FAILED: {record["error"]}'
                    tell(f'{job.row} seed {job.seed}: {result}; {len(todo) + len(running)} runs left, {eta} to go')
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.join()
    return {j.key: done[j.key] for j in jobs if j.key in done}


def keep_freed_memory() -> None:
    """glibc gives what a training step frees at its end back to the system, and the next step faults every page in.

    That is 15 % of the time of a deep network of narrow layers on a CPU. Does nothing with another C library.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        for parameter, value in ((-1, 2**31 - 1), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD: the largest
            libc.mallopt(parameter, value)


def _child(train: Train, job: Job, root: Path, source: str | None, device: int | None) -> None:
    """One job in a process of its own; log and record lie in the job's folder, a failure is a record too."""
    folder = root / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    log = os.open(folder / 'console.log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if device is not None:
        torch.cuda.set_device(device)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 1)))
    keep_freed_memory()
    record = _begun(job)
    try:
        with ending_cleanly():  # also what a run started itself
            record |= dict(status=DONE, **train(job, folder, source))
    except Exception as e:
        traceback.print_exc()
        status = DIVERGED if isinstance(e, Diverged) else FAILED
        record |= dict(status=status, error=f'{type(e).__name__}: {e}'[:500])
    write_atomically(folder / RECORD, json.dumps(record).encode())
    sys.stdout.flush()


def _record(job: Job, root: Path, code: int) -> dict[str, Any]:
    file = root / job.folder / RECORD
    record = json.loads(file.read_text()) if file.exists() else {}
    if record.get('digest') != job.digest:
        error = f'the process ended with code {code} and left no record; see {job.folder}/console.log'
        record = dict(_begun(job), status=FAILED, error=error)
    return record


def _begun(job: Job) -> dict[str, Any]:
    return dict(row=job.row, seed=job.seed, digest=job.digest)
