"""One process at a time in a folder, and nothing of it left when it is told to end."""

from __future__ import annotations

import atexit
import errno
import fcntl
import gc
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

LOCK = '.run.lock'
RANKS = ('RANK', 'OMPI_COMM_WORLD_RANK', 'SLURM_PROCID')  # mpirun within a job of Slurm has both of the latter
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without `flock`, some NFS
_held: dict[Path, IO] = {}


@contextmanager
def only_process(file: Path, refusal: str, wait: float = 0.0, with_forked: bool = False) -> Iterator[None]:
    """Holds a lock file; the kernel frees it however this process ends.

    Args:
        file: made where it is missing, and left; it says who holds it.
        refusal: what the error says; ``{holder}`` in it becomes the process that holds the file.
        wait: seconds to try for.
        with_forked: whether what it forked holds it too, as long as that lives: for workers that write.

    Raises:
        BlockingIOError: if another process holds it.
    """
    deadline = time.monotonic() + wait
    with file.open('a+') as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    held.seek(0)
                    raise BlockingIOError(refusal.replace('{holder}', _described(held.read()))) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                told = f'The file system of {file} keeps no locks: that nobody else writes there is not checked.'
                print(told, file=sys.stderr)
                break
        held.truncate(0)
        me = dict(pid=os.getpid(), host=socket.gethostname(), since=time.strftime('%Y-%m-%d %H:%M'))
        held.write(json.dumps(me))
        held.flush()
        path = file.resolve()
        if not with_forked:
            _held[path] = held
        try:
            yield
        finally:
            _held.pop(path, None)


def _described(text: str) -> str:
    try:
        holder = json.loads(text)
        return f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]}'
    except (ValueError, KeyError, TypeError):
        return 'another process'


def is_first() -> bool:
    """Whether this is the first process of a distributed run, or the only one."""
    return int(next((os.environ[name] for name in RANKS if os.environ.get(name)), 0)) == 0


@contextmanager
def one_run(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps a folder for the run of this process; nothing to do where it is kept already.

    Of a distributed run the first process keeps it. Signals end the run as Ctrl-C does, see ``ending_cleanly``.

    Raises:
        SystemExit: if another process runs there; the message names it and the ways out.
    """
    path = Path(folder).resolve() / LOCK
    refusal = (
        f"a run goes on in {folder} ({{holder}}), and two would take each other's checkpoints for their own. Wait for "
        'it, end it with kill and its number, or choose another folder.'
    )
    with ExitStack() as stack:
        stack.enter_context(ending_cleanly())
        if is_first() and path not in _held:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(only_process(path, refusal))
            except BlockingIOError as error:
                raise SystemExit(str(error)) from None
        yield


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise Stopped (128 + signal): files are closed and the workers of loaders end.

    Python's default would leave those behind. A handler of somebody else's, or a signal that is ignored, stays so.
    """
    main = threading.current_thread() is threading.main_thread()
    mine = [s for s in SIGNALS if main and signal.getsignal(s) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


class Stopped(SystemExit):
    """A signal told this process to end."""


def _end(number: int, frame: object) -> None:
    raise Stopped(128 + number)


def leave(status: int) -> NoReturn:
    """Ends this process as Python does, files written out, but for the last step: the interpreter is not taken down.

    A run that was stopped anywhere may have daemon threads at work (those that feed the workers of its loader). Python
    ends them within whatever C++ they are in, and a segmentation fault or an abort takes the place of the status.
    """
    threading._shutdown()  # both as multiprocessing ends its processes
    atexit._run_exitfuncs()
    gc.collect()
    for file in [o for o in gc.get_objects() if issubclass(type(o), io.IOBase)]:
        with suppress(Exception):  # closed, or whoever read it has gone
            file.flush()
    os._exit(status)


def _in_a_child() -> None:
    """A forked process holds no lock of its parent and ends by a signal as any other does."""
    for file in _held.values():
        file.close()
    _held.clear()
    for number in SIGNALS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_a_child)
