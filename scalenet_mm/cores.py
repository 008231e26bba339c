"""How many cores a process may use: a container's or a job's share, not the machine's. Imports no torch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

CGROUPS, MINE, LOAD = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup'), Path('/proc/loadavg')


def cores() -> int:
    """Cores that this process may use, at least one: those it is bound to, or fewer where a cgroup rations their time.

    Python and torch count the first alone (``loky`` and Python's own count leave out the cgroups above a job's).
    """
    return min([bound(), *map(math.ceil, quotas())])


def bound() -> int:
    """Cores that this process is bound to, all of the machine's where nobody bound it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def quotas(mine: Path = MINE, mount: Path = CGROUPS) -> Iterator[float]:
    """What every cgroup around this process rations it to, in cores, of version 2 and of version 1."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(':', 2)
        if kinds and 'cpu' not in kinds.split(','):
            continue
        root = next((root for root in (mount / kinds, mount / 'cpu') if kinds and root.is_dir()), mount)
        here = root / path.lstrip('/')
        for folder in (here, *here.parents):
            if folder == mount.parent:
                break
            if quota := _quota(folder):
                yield quota


def _quota(folder: Path) -> float | None:
    """Microseconds of a period, over the period."""
    try:
        if (folder / 'cpu.max').is_file():
            used, period = (folder / 'cpu.max').read_text().split()
        else:
            used, period = ((folder / f'cpu.cfs_{part}_us').read_text().strip() for part in ('quota', 'period'))
        return int(used) / int(period) if int(used) > 0 else None
    except (OSError, ValueError):  # none there; 'max'
        return None


def at_once(wanted: int, processes: int = 1) -> int:
    """``wanted`` workers, or as many of each of these processes as have a core; at least one where one is wanted."""
    return min(wanted, max(1, cores() // processes))


def others_run(threads: int, looks: int = 3) -> bool:
    """Whether so much else runs that there is no core for each thread of this process; unknown counts as no.

    Counts what runs or waits to at this moment, the least of some looks.
    """
    found = []
    for _ in range(looks):
        try:
            found.append(int(LOAD.read_text().split()[3].partition('/')[0]) - 1)  # one is this look
        except (OSError, ValueError, IndexError):
            return False
        time.sleep(0.005)
    return min(found) + threads > (os.cpu_count() or 1)


def prepare_threads(loads: bool, environment: MutableMapping[str, str] = os.environ) -> None:
    """Before torch is loaded, where the environment does not say it: how many threads there are, and how they wait.

    No more than the ration of cores: others use it up at the start of every period, and all stand still until the next.
    A thread that waits actively takes its core from whoever has what it waits for; passively, it wakes up late, which
    costs where nothing else runs (docs/performance.md).

    Args:
        loads: whether workers of a loader will run beside the threads.
    """
    number = cores()
    if rationed := number < bound():
        environment.setdefault('OMP_NUM_THREADS', str(number))
    if 'OMP_WAIT_POLICY' not in environment and (loads or rationed or others_run(number)):
        environment['OMP_WAIT_POLICY'] = 'PASSIVE'
