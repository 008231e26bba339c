"""How many cores a process may use: a container's or a job's share, not the machine's. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

CGROUPS, MINE = Path('/sys/fs/cgroup'), Path('/proc/self/cgroup')


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


def ration_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Before torch is loaded: no more threads than cores' time, unless their number is set.

    Threads beyond a ration use it up at the start of every period and all stand still until the next.
    """
    if (number := cores()) < bound():
        environment.setdefault('OMP_NUM_THREADS', str(number))
