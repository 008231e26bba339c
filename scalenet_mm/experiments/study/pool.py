"""Runs many rows and seeds, several at once; what is done is skipped, what crashed is recorded."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS, RECORD = 'results.jsonl', 'record.json'


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        row: key of the row.
        seed: of initialisation and data.
        digest: changes with any of its settings; a record of another digest is of another run.
        cost: expected, relative to other jobs'.
        needs: the job whose checkpoint it starts from.
    """

    row: str
    seed: int
    digest: str
    cost: float
    needs: Job | None = None

    @property
    def folder(self) -> str:
        return f'{self.row}/seed{self.seed}'


def read_results(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON lines file; a line that a killed process left half written is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


@contextmanager
def alone(root: Path) -> Iterator[Path]:
    """The results file, for one process at a time; a line that a killed one left half written is ended.

    Raises:
        SystemExit: if another process is running jobs in this folder.
    """
    root.mkdir(parents=True, exist_ok=True)
    file = root / RESULTS
    with file.open('a+b') as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(
                f'Another call is running studies in {root}; wait for it, or choose another --work-dir.'
            ) from None
        if held.tell() and file.read_bytes()[-1:] != b'\n':
            held.write(b'\n')
            held.flush()
        yield file


def latest(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """The last record of each row and seed."""
    return {(r['row'], r['seed']): dict(r) for r in records}


def run_all(
    jobs: list[Job],
    root: Path,
    at_once: int,
    target: Callable[..., None],
    devices: int = 0,
    tell: Callable[[str], None] = print,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Runs what is not done yet and appends each record to ``root/results.jsonl`` as it comes.

    A process that fails or dies costs its own run (and what starts from it), never the others.

    Args:
        at_once: processes at a time.
        target: ``(row, seed, digest, root, folder, source, device)``: runs one job and leaves its record in
            ``root/folder/record.json``; ``source`` is the checkpoint it starts from, or None.
        devices: GPUs to spread them over; 0 for the CPU.

    Returns:
        The records of the jobs by (row, seed).
    """
    with alone(root) as file:
        return _run(jobs, root, file, at_once, target, devices, tell)


def _run(
    jobs: list[Job],
    root: Path,
    file: Path,
    at_once: int,
    target: Callable[..., None],
    devices: int,
    tell: Callable[[str], None],
) -> dict[tuple[str, int], dict[str, Any]]:
    known = latest(read_results(file))
    digests = {(j.row, j.seed): j.digest for j in jobs}
    done = {k: r for k, r in known.items() if r['status'] == 'done' and r['digest'] == digests.get(k)}
    todo = [j for j in jobs if (j.row, j.seed) not in done]
    tell(f'{len(jobs)} runs, {len(jobs) - len(todo)} of them done before.')
    # importing mmengine asks for CUDA, after which a forked process cannot use it
    context = multiprocessing.get_context('spawn' if devices else 'forkserver')
    if not devices:
        context.set_forkserver_preload(['scalenet_mm.experiments.study.runs'])
    running: dict[Any, tuple[Job, int | None]] = {}
    spent = work = 0.0
    begin = time.time()
    try:
        while todo or running:
            for job in _ready(todo, done, running, at_once):
                process, slot = _start(context, target, job, done, root, devices, running)
                running[process] = (job, slot)
            time.sleep(0.2)
            for process in [p for p in running if not p.is_alive()]:
                job, _ = running.pop(process)
                record = _record(job, root, process.exitcode)
                with file.open('a') as out:
                    out.write(json.dumps(record) + '\n')
                done[job.row, job.seed] = record
                work += job.cost
                spent = time.time() - begin
                left = sum(j.cost for j in (*todo, *(j for j, _ in running.values())))
                tell(f'{_told(record)}; {len(todo) + len(running)} left, {_clock(spent * left / work)} to go')
            todo = list(_not_orphaned(todo, done, tell))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
    return {k: done[k] for k in digests if k in done}


def _ready(todo: list[Job], done: Mapping, running: Mapping, at_once: int) -> Iterator[Job]:
    for job in list(todo):
        if len(running) >= at_once:
            return
        if job.needs is None or done.get((job.needs.row, job.needs.seed), {}).get('status') == 'done':
            todo.remove(job)
            yield job


def _start(context, target: Callable, job: Job, done: Mapping, root: Path, devices: int, running: Mapping):
    taken = [slot for _, slot in running.values()]
    slot = min(range(devices), key=taken.count) if devices else None
    source = done[job.needs.row, job.needs.seed]['checkpoint'] if job.needs else None
    source = str(root / source) if source else None
    args = (job.row, job.seed, job.digest, root, job.folder, source, slot)
    process = context.Process(target=target, args=args)
    process.start()
    return process, slot


def _record(job: Job, root: Path, code: int) -> dict[str, Any]:
    file = root / job.folder / RECORD
    record = json.loads(file.read_text()) if file.exists() else {}
    if record.get('digest') != job.digest:
        error = f'the process ended with code {code} and left no record; see {job.folder}/console.log'
        record = dict(row=job.row, seed=job.seed, digest=job.digest, status='failed', error=error)
    return record


def _not_orphaned(todo: list[Job], done: Mapping, tell: Callable[[str], None]) -> Iterator[Job]:
    for job in todo:
        origin = done.get((job.needs.row, job.needs.seed)) if job.needs else None
        if origin and origin['status'] != 'done':
            tell(f'{job.folder} left out: {job.needs.folder} failed')
        else:
            yield job


def _told(record: Mapping[str, Any]) -> str:
    name = f'{record["row"]} seed {record["seed"]}'
    if record['status'] != 'done':
        return f'{name} FAILED: {record["error"]}'
    return f'{name}: top-1 {record["top1"]:.2f}, loss {record["loss"]:.3f}, {record["minutes"]:.1f} min'


def _clock(seconds: float) -> str:
    return f'{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}'
