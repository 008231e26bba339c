"""Files that are there whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

UNFINISHED = '.unfinished'  # ends the name of a file that is being written


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes beside ``path``, to the disk, and renames: whenever the process dies, ``path`` is the old file or the new.

    Raises:
        OSError: if it cannot be written; the old file is untouched, and nothing is left beside it.
    """
    path = Path(path).expanduser().resolve()  # the file behind a link, as open() writes it
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise OSError(
            error.errno,
            f'{path} ({len(data):,} bytes) could not be written: {error.strerror}. What stood there before is '
            'untouched. Free some space or name another folder; an interrupted training continues with --resume',
        ) from error


def pickled(content: Mapping[str, Any]) -> bytes:
    """The bytes that ``torch.save`` writes."""
    with io.BytesIO() as buffer:
        torch.save(content, buffer)
        return buffer.getvalue()


def _sync_folder(folder: Path) -> None:
    """Brings the new name to the disk too, where folders can be opened for that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
