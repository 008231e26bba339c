"""Whether a file is there whole, and one that is read: asked of its bytes, before anything in it is used."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from ..file_names import DIGEST
from .strict import CheckpointError

ZIP = b'PK\x03\x04'  # what torch.save writes
BLOCK = 2**22  # bytes at a time

# How files that are no checkpoint begin
FOREIGN = (
    (b'version https://git-lfs', 'it is a git-lfs pointer; run `git lfs pull` to get the file'),
    (b'<', 'it is a web page; the download address leads to a page, not to the file'),
    (b'{', 'it is a JSON text, no weights'),
    (b'\x1f\x8b', 'it is compressed (gzip); unpack it first'),
    (b'GGUF', 'it is a GGUF file of quantised weights; take the .pth or .safetensors of the same model'),
    (b'\x89HDF', 'it is an HDF5 file (Keras); take the .pth or .safetensors of the same model'),
)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the length of its header, then JSON."""
    with path.open('rb') as file:
        start = file.read(9)
    return start[8:] == b'{' and 1 < int.from_bytes(start[:8], 'little') < path.stat().st_size


def require_whole(path: Path) -> None:
    """Refuses what is no checkpoint, and what is not as it was written: by the digest in its name, or a zip's CRC-32.

    Raises:
        CheckpointError: naming the file, what is wrong, and what to do.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        start = file.read(64)
    reason = next((why for sign, why in FOREIGN if start.lstrip().startswith(sign)), None)
    if not start or (reason and not is_safetensors(path)):
        raise CheckpointError(f'{path} ({size:,} bytes) is not a checkpoint: {reason or "it is empty; fetch it again"}')
    published = DIGEST.search(path.name)
    if published:
        _require_digest(path, published[1])
    elif start.startswith(ZIP):
        _require_checksums(path)


def _require_digest(path: Path, published: str) -> None:
    found = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(BLOCK):
            found.update(block)
    if not found.hexdigest().startswith(published):
        raise CheckpointError(
            f'{path} ({path.stat().st_size:,} bytes) is damaged, or no longer the published file: its name says that '
            f'its SHA-256 begins with {published}, and it begins with {found.hexdigest()[: len(published)]}. Remove it '
            'and fetch it again; where those digits are no digest, rename it.'
        )


def _require_checksums(path: Path) -> None:
    """torch.load compares none of the checksums that torch.save writes."""
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except Exception as error:  # zipfile raises many kinds for bytes that are no zip any more
        wrong = f'its directory ({type(error).__name__}: {error})'
    if wrong is not None:
        raise CheckpointError(
            f'{path} ({path.stat().st_size:,} bytes) is damaged: {wrong} is not what was written (its CRC-32 differs), '
            'or the file is truncated; fetch it again'
        )
