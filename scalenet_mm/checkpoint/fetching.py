"""Files from the network, kept in torch's cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch
from torch import distributed

from ..file_names import DIGEST
from .strict import CheckpointError

HUB = re.compile(r'hf://(?P<repo>[^/@]+/[^/@]+)/(?P<path>[^@]+)(?:@(?P<revision>\S+))?')


def fetch_url(url: str) -> Path:
    """Download a file once; with several processes only the first one does.

    Args:
        url: `http(s)://...`. A SHA-256 prefix in the file name is verified.

    Returns:
        Where the file lies in `torch.hub.get_dir()`. Files without a hash in their name have a
        folder for each address, as different ones share names like `model.safetensors`.

    Raises:
        CheckpointError: If the download fails or ends early, or its hash differs; nothing of it is kept.
    """
    name = Path(unquote(urlparse(url).path)).name
    if not name:
        raise CheckpointError(f'{url} names no file; give the address of the checkpoint itself')
    digest = DIGEST.search(name)
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    target = (folder if digest else folder / hashlib.sha256(url.encode()).hexdigest()[:16]) / name
    with _first_process_first():
        if not target.exists():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                size = None if digest else _announced(url)
                torch.hub.download_url_to_file(url, str(target), digest[1] if digest else None)
                if size not in (None, found := target.stat().st_size):
                    target.unlink()
                    raise OSError(f'the connection ended after {found:,} of {size:,} bytes')
            except (URLError, HTTPException, OSError, RuntimeError) as error:
                raise CheckpointError(
                    f'{url} could not be downloaded ({error}). Download it in another way, and '
                    'give the path of the file instead of its address'
                ) from error
    return target


def _announced(url: str) -> int | None:
    """The bytes that a server says it will send; torch's download takes a connection that ends early for the end."""
    with urlopen(Request(url, headers={'User-Agent': 'torch.hub'})) as answer:
        return answer.length


def fetch_hub(address: str) -> Path:
    """Download a file of a Hugging Face repository through `huggingface_hub`'s own cache.

    Args:
        address: `hf://owner/repo/path/in/repo[@revision]`.

    Raises:
        ImportError: If `huggingface_hub` is not installed.
        CheckpointError: If the address is malformed or the file cannot be fetched.
    """
    parts = HUB.fullmatch(address)
    if not parts:
        raise CheckpointError(f'{address} is not of the form hf://owner/repo/path/in/repo[@revision]')
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(f'{address} needs the package huggingface_hub: pip install huggingface_hub') from error
    with _first_process_first():
        try:
            file = hf_hub_download(parts['repo'], parts['path'], revision=parts['revision'])
        except Exception as error:  # each of its errors explains itself
            raise CheckpointError(f'{address} could not be fetched: {error}') from error
    return Path(file)


@contextmanager
def _first_process_first() -> Iterator[None]:
    """Let process 0 go through the block (and fill the cache) before the others do."""
    together = distributed.is_available() and distributed.is_initialized()
    first = not together or distributed.get_rank() == 0
    if not first:
        distributed.barrier()
    try:
        yield
    finally:
        if together and first:
            distributed.barrier()
