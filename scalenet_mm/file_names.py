"""What the name of a file says of it: its kind, and perhaps its digest. Asked before the work that writes it starts."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

# `name-<first digits of the file's SHA-256>.pth`; digits that are a date, or a number filled up with zeros, are no hash
DIGEST = re.compile(r'-(?!20\d{6}\.|0\d*\.)([0-9a-f]{8,64})\.\w+$')
WEIGHTS = {'.pth', '.safetensors'}
FILES = {*WEIGHTS, '.pt', '.bin', '.ckpt', '.gguf', '.h5', '.hdf5', '.npy', '.npz', '.onnx', '.pickle', '.pkl'}
FILES |= {'.bmp', '.gif', '.jpeg', '.jpg', '.pdf', '.png', '.svg', '.tif', '.tiff', '.webp', '.avi', '.mp4'}
FILES |= {'.json', '.jsonl', '.yaml', '.yml', '.toml', '.xml', '.ini', '.cfg', '.csv', '.tsv', '.parquet'}
FILES |= {'.txt', '.md', '.rst', '.html', '.log', '.py', '.ipynb', '.sh'}
FILES |= {'.7z', '.bz2', '.gz', '.rar', '.tar', '.tgz', '.whl', '.xz', '.zip', '.zst'}


def require_suffix(path: str | Path, *suffixes: str) -> Path:
    """The path, if its suffix is that of what is written there.

    Raises:
        ValueError: if it is not, or the name promises a digest that a new file does not have.
    """
    path = Path(path).expanduser()  # a shell leaves ~ in --out=~/x
    if path.suffix not in suffixes:
        raise ValueError(f'{path} must end in {" or ".join(suffixes)}, which says what is written there.')
    if path.suffix in WEIGHTS and (digest := DIGEST.search(path.name)):
        raise ValueError(
            f'{path} would say that its SHA-256 begins with {digest[1]}, as published files do; choose a name without.'
        )
    return path


def require_folder_name(path: str | Path) -> Path:
    """The path, if a folder that does not exist may be made there.

    Raises:
        ValueError: if its name, or that of a folder above it that would be made too, is a file's.
    """
    path = Path(path).expanduser()
    above = (p for p in path.parents if not p.exists())
    made = (p for p in (path, *above) if not p.is_dir())
    if named := next((p for p in made if p.suffix.lower() in FILES), None):
        raise ValueError(f'{named} is the name of a file, and a folder is written; leave {named.suffix} out.')
    return path


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """What is wrong with a path, as argparse tells it."""
    try:
        yield
    except OSError as error:
        raise ArgumentTypeError(f'{error.filename} cannot be reached: {error.strerror}.') from None
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def file_ending(*suffixes: str) -> Callable[[str], Path]:
    """The ``type`` of an argparse argument that names a file to write."""

    @_in_a_sentence()
    def named(text: str) -> Path:
        path = require_suffix(text, *suffixes)
        require_folder_name(path.parent)
        if path.is_dir():
            raise ArgumentTypeError(f'{path} is a folder; name a file in it.')
        _require_room(path.parent)
        return path

    return named


@_in_a_sentence()
def a_folder(text: str) -> Path:
    """The ``type`` of an argparse argument that names a folder to write into."""
    path = require_folder_name(text)
    _require_room(path)
    return path


@_in_a_sentence()
def a_file(text: str) -> Path:
    """The ``type`` of an argparse argument that names a file to read."""
    if not (path := Path(text).expanduser()).is_file():
        raise ArgumentTypeError(f'{path} is a folder; name a file in it.' if path.is_dir() else f'there is no {path}.')
    return path


def local_path(source: str | Path) -> Path:
    """A path as checkpoints are named: ``file://`` and ``~`` taken off."""
    address = str(source)
    return Path(unquote(urlparse(address).path) if address.startswith('file://') else address).expanduser()


def require_other(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """Raises SystemExit if a file would be written over one that is read."""
    read = {local_path(i).resolve() for i in inputs}
    lost = next((o for o in outputs if o.expanduser().resolve() in read), None)
    if lost:
        raise SystemExit(f'{lost} is read and would be written over; name another file.')


def _require_room(place: Path) -> None:
    nearest = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise ArgumentTypeError(f'{nearest} is a file, so there can be no folder {place}; name another.')
    if not os.access(nearest, os.W_OK):
        raise ArgumentTypeError(f'{nearest} cannot be written to; name another folder.')
