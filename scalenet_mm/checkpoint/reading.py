"""From a path or address to a state dict: nothing but weights is ever unpickled."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from ..compat import allowed_globals
from ..file_names import local_path
from .digests import digests, fingerprint
from .fetching import fetch_hub, fetch_url
from .strict import CheckpointError
from .whole import is_safetensors, require_whole

# Where a checkpoint keeps its weights. mmengine's EMA hook swaps the two on saving: its 'state_dict'
# is the average and its 'ema_state_dict' the raw weights, so the latter never comes first.
PLAIN = ('state_dict', 'model', 'model_state_dict')
AVERAGED = ('state_dict_ema', 'model_ema')  # timm, official DeiT
LAST = ('ema_state_dict', 'module')
SHA256 = re.compile('[0-9a-f]{64}')
PLACES = (*PLAIN, *AVERAGED, *LAST)
COUNTERS = ('steps', 'n_averaged')  # mmengine's and torch's averaged models
DELTA = 'scalenet_mm.delta'  # the format that the header of a delta says
WRAPPERS = ('module.', '_orig_mod.')  # DataParallel and averaged models; torch.compile


def read_checkpoint(source: str | Path, map_location: str | torch.device | None = 'cpu') -> dict[str, Any]:
    """Read a checkpoint file, wherever it is, without running anything stored in it.

    Args:
        source: A local path, `file://`, `http(s)://`, `hf://owner/repo/path/in/repo[@revision]`, or
            any other scheme that mmengine knows (`open-mmlab://`, `torchvision://`, `s3://`, ...).
        map_location: As `torch.load`.

    Returns:
        The content of the file. A `.safetensors` file gives `{'state_dict': ..., 'metadata': ...}`, with `meta` where
        it says what it knows of its data.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is not a readable checkpoint, or holds more than weights.
    """
    address = str(source)
    scheme = address.split('://', 1)[0] if '://' in address else ''
    if scheme in ('http', 'https'):
        return _read_file(fetch_url(address), map_location)
    if scheme == 'hf':
        return _read_file(fetch_hub(address), map_location)
    if scheme not in ('', 'file'):
        return _read_with_mmengine(address, map_location)
    return _read_file(local_path(address), map_location)


def unwrap(checkpoint: Mapping[str, Any], prefer_ema: bool = False) -> OrderedDict[str, Tensor]:
    """Find the state dict inside a checkpoint and take wrappers off its keys.

    Args:
        checkpoint: What `read_checkpoint` returned; not changed.
        prefer_ema: Take the averaged weights where the file has both (timm's `state_dict_ema`,
            official DeiT's `model_ema`). In files of mmengine the plain weights are the average.

    Returns:
        The tensors, without `module.` and the step counter of averaged models, with `_metadata`.

    Raises:
        CheckpointError: If the checkpoint holds no tensors, or is a delta.
    """
    header = checkpoint.get('metadata')
    if isinstance(header, Mapping) and header.get('format') == DELTA:
        raise CheckpointError(
            'it is a delta, the increments alone. A whole checkpoint is made of it and what it was trained from by: '
            'scalenet delta apply BASE DELTA OUT.pth (scalenet test takes BASE --delta DELTA)'
        )
    order = (*AVERAGED, *PLAIN, *LAST) if prefer_ema else PLACES
    places = [*(checkpoint[k] for k in order if isinstance(checkpoint.get(k), Mapping)), checkpoint]
    # under the name of weights a file may keep settings
    content = next((p for p in places if any(isinstance(v, Tensor) for v in p.values())), places[0])
    state = with_metadata(((k, v) for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)), content)
    if not state:
        raise CheckpointError(
            f'the checkpoint holds no tensors: its keys are {_some(content)}, and weights are '
            f'looked for under {", ".join(order)} and at the top level'
        )
    while prefix := next((p for p in WRAPPERS if _all_under(state, p)), None):
        state = strip_prefix(state, prefix)
    return state


def dataset_meta(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and palette of a checkpoint: OpenMMLab keeps them in `dataset_meta`, before mmengine as `CLASSES`."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    said = meta.get('dataset_meta')
    if said and isinstance(said, Mapping):
        return {str(key).lower(): value for key, value in said.items()}
    return {key.lower(): meta[key] for key in ('CLASSES', 'PALETTE') if meta.get(key) is not None}


def with_metadata(entries: Iterable[tuple[str, Tensor]], of: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Entries as a state dict with a copy of the `_metadata` of another one, if it has some."""
    state = OrderedDict(entries)
    state._metadata = OrderedDict(getattr(of, '_metadata', None) or {})
    return state


def add_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> OrderedDict[str, Tensor]:
    """All entries under `prefix` (with its dot); `_metadata` follows."""
    state = with_metadata(((f'{prefix}{key}', value) for key, value in state_dict.items()), state_dict)
    state._metadata = OrderedDict((f'{prefix}{key}'.rstrip('.'), value) for key, value in state._metadata.items())
    return state


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> OrderedDict[str, Tensor]:
    """The entries under `prefix` (with its dot), without it; `_metadata` follows."""
    stripped = OrderedDict((key[len(prefix) :], value) for key, value in state_dict.items() if key.startswith(prefix))
    stripped._metadata = OrderedDict(
        (key[len(prefix) :], value)
        for key, value in getattr(state_dict, '_metadata', {}).items()
        if f'{key}.'.startswith(prefix)
    )
    return stripped


def register_schemes() -> None:
    """Teach mmengine's loader `hf://` and `.safetensors`, for `load_from` and stock backbones.

    mmengine tries its patterns in reverse alphabetical order with `re.match`: the one for
    `.safetensors` begins with an empty `z{0}` to be asked before `https://`. Safe to call twice.
    """
    from mmengine.runner import CheckpointLoader

    CheckpointLoader.register_scheme(r'z{0}.*\.safetensors(\?.*)?$', load_from_safetensors, force=True)
    CheckpointLoader.register_scheme('hf://', load_from_hf, force=True)


def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    return read_checkpoint(filename, map_location)


def load_from_hf(filename: str, map_location: Any = None) -> dict[str, Any]:
    return read_checkpoint(filename, map_location)


def _read_file(path: Path, map_location: Any) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f'there is no checkpoint {path} (looked from {Path.cwd()})')
    if not path.is_file():
        raise CheckpointError(f'{path} is a folder; name the checkpoint file inside it')
    require_whole(path)
    with _explained(str(path), f'{path} ({path.stat().st_size:,} bytes)'), safe_globals():
        if is_safetensors(path):
            return _read_safetensors(path, map_location)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f'{path} holds a {type(checkpoint).__name__}, not a dict of weights; save '
            '`model.state_dict()` instead of the model'
        )
    return checkpoint


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework='pt', device=str(map_location or 'cpu')) as file:
        header = dict(file.metadata() or {})
        state = OrderedDict((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
    # a file of ours says what it holds: deltas, and what `scalenet convert` wrote
    if SHA256.fullmatch(header.get('contents', '')) and fingerprint(digests(state)) != header['contents']:
        raise CheckpointError(f'{path} is damaged: its tensors are not those that were written; fetch it again.')
    # what `.pth` keeps in the state dict's `_metadata`, written by our converter
    state._metadata = OrderedDict(json.loads(header.pop('_metadata', '{}')))
    said = {'meta': {'dataset_meta': json.loads(header['dataset_meta'])}} if 'dataset_meta' in header else {}
    return {'state_dict': state, 'metadata': header, **said}


def _read_with_mmengine(address: str, map_location: Any) -> dict[str, Any]:
    from mmengine.runner import CheckpointLoader

    ours = load_from_safetensors, load_from_hf
    schemes = {scheme for scheme, loader in CheckpointLoader._schemes.items() if scheme and loader not in ours}
    if not any(re.match(scheme, address) for scheme in schemes):
        known = ', '.join(sorted({'file://', 'hf://', *schemes}))
        raise CheckpointError(f'{address}: unknown scheme; known are paths and {known}')
    with _explained(address, address, 'it could not be fetched, or is no checkpoint'):
        if urlparse(address).path.endswith('.safetensors'):
            from mmengine.fileio import get_local_path

            with get_local_path(address) as file:
                return _read_file(Path(file), map_location)
        with safe_globals(), _weights_only():
            return CheckpointLoader.load_checkpoint(address, map_location)


@contextmanager
def safe_globals() -> Iterator[None]:
    """Allow `allowed_globals()` beside what the user allowed, ours going first, and put all back."""
    if torch.__version__ < (2, 6):  # names could not be mapped: more than tensors is refused there
        yield
        return
    before, ours = torch.serialization.get_safe_globals(), allowed_globals()
    names = {name for _, name in ours}
    others = [entry for entry in before if not (isinstance(entry, tuple) and entry[1] in names)]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*others, *ours])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@contextmanager
def _weights_only() -> Iterator[None]:
    """Hold mmengine's loaders to `weights_only=True`: they fall back to unpickling everything."""
    names = ('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = '1'
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _explained(
    name: str, described: str, likely: str = 'it is truncated or of another kind; fetch it again'
) -> Iterator[None]:
    """Turn what a broken or unsafe file raises into one sentence on what to do."""
    try:
        yield
    except (CheckpointError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        refused = re.search(r'GLOBAL (\S+(?:\(.*?\))?)', str(error))
        if refused:
            old = Path(name) if Path(name).is_file() else Path('OLD')
            files = ', '.join(_in_double_quotes(repr(str(f))) for f in (old, old.with_name(f'{old.stem}.weights.pth')))
            raise CheckpointError(
                f'{name} was refused: it stores {refused[1]}, and only weights are read '
                '(weights_only=True), since anything else can run code. If you trust whoever made the file: to resume '
                'from it, allow that class with torch.serialization.add_safe_globals; to use its weights, write them '
                'to a new file, where that class can be imported: '
                f'python -c "from scalenet_mm.checkpoint.trusted import write_weights; write_weights({files})"'
            ) from error
        why = f' ({type(error).__name__}: {str(error).splitlines()[0][:200]})' if str(error) else ''
        raise CheckpointError(f'{described} cannot be read as a checkpoint: {likely}.{why}') from error


def _in_double_quotes(text: str) -> str:
    """Text for a shell's double quotes."""
    return re.sub(r'([\\"$`])', r'\\\1', text)


def _all_under(state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    keys = [key for key in state_dict if key not in COUNTERS]
    return bool(keys) and all(key.startswith(prefix) for key in keys)


def _some(content: Mapping[str, Any]) -> str:
    keys = [str(key) for key in content]
    return ', '.join(keys[:10]) + (f', ... ({len(keys)} in all)' if len(keys) > 10 else '') or 'none'
