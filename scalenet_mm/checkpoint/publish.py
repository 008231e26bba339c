"""A delta for others: the file, its config and a model card, in a folder or a Hugging Face repository."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

from ..tables import markdown_table
from .config_text import is_json
from .delta_file import PUSHED, Delta, read_delta
from .strict import CheckpointError

CONFIGS, CARD = ('config.py', 'config.json'), 'README.md'
OURS = (PUSHED, *CONFIGS, CARD)


def push_delta(
    delta: str | Path, dest: str | Path, license: str = 'apache-2.0', base_model: str | None = None, force: bool = False
) -> list[str]:
    """Writes the delta, its config (``config.py``, of Hugging Face's models ``config.json``) and a model card.

    Args:
        delta: what ``read_delta`` takes.
        dest: a folder, or ``hf://owner/repo``, which is made if it is not there (log in with ``hf auth login``).
        license: of the weights, as the Hub names it.
        base_model: the base's Hub repository, ``owner/repo``; by default that of a base on the Hub. The Hub refuses
            cards whose ``base_model`` is no repository, so a base from elsewhere is named in the text only.
        force: replace files of these names that are there, in a folder or a repository.

    Returns:
        Where the files are.

    Raises:
        FileExistsError: if one of them is there already.
        CheckpointError: if the address is none of the Hub, or the upload fails.
    """
    read = _placeless(read_delta(delta), base_model)
    dest = str(dest).rstrip('/')
    if '://' not in dest:
        return _write(read, Path(dest).expanduser(), dest, license, base_model, force)
    repo = dest.removeprefix('hf://')
    if repo.count('/') != 1:
        near = re.fullmatch(r'https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)', dest)
        raise CheckpointError(
            f'{dest} is neither a folder nor of the form hf://owner/repo' + (f'; write hf://{near[1]}' if near else '')
        )
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(f'{dest} needs the package huggingface_hub: pip install huggingface_hub') from error
    with tempfile.TemporaryDirectory() as folder:
        files = _write(read, Path(folder), dest, license, base_model, force)
        try:
            HfApi().create_repo(repo, exist_ok=True)
            there = [] if force else HfApi().list_repo_files(repo)
            _require_new([name for name in OURS if name in there], dest)
            others = [name for name in CONFIGS if name != _config_name(read)]
            HfApi().upload_folder(
                repo_id=repo, folder_path=folder, commit_message='ScaleNet increments', delete_patterns=others
            )
        except FileExistsError:
            raise
        except Exception as error:  # each of its errors explains itself
            raise CheckpointError(f'{dest} could not be written: {error}') from error
    return [f'{dest}/{Path(file).name}' for file in files]


def _placeless(delta: Delta, base_model: str | None) -> Delta:
    """A delta that names its base as others may find it: a folder of this machine by its name, or by its repository."""
    base = Path(delta.base).expanduser()
    if '://' in delta.base or not (base.is_absolute() or delta.base.startswith('.') or len(base.parts) > 2):
        return delta
    of_the_hub = base_model if is_json(delta.config) else None  # what `from_pretrained` takes
    return replace(delta, base=of_the_hub or base.name)


def _require_new(there: list[str], address: str) -> None:
    if there:
        raise FileExistsError(f'{address} holds {", ".join(there)} already; add --force to replace them.')


def _write(delta: Delta, folder: Path, address: str, license: str, base_model: str | None, force: bool) -> list[str]:
    if not force:
        _require_new([name for name in OURS if (folder / name).exists()], address)
    delta.save(folder / PUSHED)
    for name in CONFIGS:  # of another kind of delta
        (folder / name).unlink(missing_ok=True)
    config = _config_name(delta)
    (folder / config).write_text(delta.config)
    (folder / CARD).write_text(card(delta, address, license, base_model))
    return [str(folder / name) for name in (PUSHED, config, CARD)]


def _config_name(delta: Delta) -> str:
    return CONFIGS[is_json(delta.config)]


def _usage(delta: Delta, here: str) -> str:
    """The code that puts a delta on its base."""
    if is_json(delta.config) or delta.config.startswith('scale_spec'):  # of a live network
        return (
            'from scalenet_mm.checkpoint.live_delta import scale_by_delta\n\n'
            f'# network: the one that was scaled, with the weights of {delta.base}, unscaled\n'
            f'scale_by_delta(network, {here!r})   # in place: scaled, then base + delta, checked'
        )
    named = '' if '://' in delta.base else f', {delta.base!r}'
    return (
        'from scalenet_mm.checkpoint.assemble import assemble\n\n'
        f'model = assemble({here!r}{named})   # base + delta, checked, in eval mode'
    )


def card(delta: Delta, address: str, license: str, base_model: str | None = None) -> str:
    """The model card (Markdown with the Hub's front matter).

    Args:
        address: where the delta will be, for the usage lines.
        license: as the Hub names it.
        base_model: the base's Hub repository.
    """
    import yaml

    if base_model is None and delta.base.startswith('hf://'):
        base_model = '/'.join(delta.base.removeprefix('hf://').split('/')[:2])
    front = dict(license=license, library_name='scalenet_mm', tags=['scalenet', 'openmmlab'])
    if base_model:
        front['base_model'] = base_model
    usage = _usage(delta, address if '://' in address else '.')
    maps = {k: v for k, v in delta.layer_maps.items() if len(set(v)) < len(v)}
    sizes = [(role, f'{n:,}', f'{nbytes:,}') for role, (n, nbytes) in delta.roles.items()]
    sections = [
        f'---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# ScaleNet increments for {delta.base}',
        'What training changed of a network deepened by shared layers ([ScaleNet](https://arxiv.org/abs/2510.18431)), '
        f'{delta.nbytes:,} bytes. The tensors it stands on are those of `{delta.base}` '
        f'(sha256 `{delta.fingerprint}`); on any other it is refused.',
        f'```python\n{usage}\n```',
        markdown_table(('role', 'tensors', 'bytes'), sizes, 'lll'),
        'Source layer of each layer of the deepened stages:\n\n'
        + markdown_table(('layers', 'sources'), [(name, ', '.join(map(str, s))) for name, s in maps.items()], 'll'),
        markdown_table(
            ('metric', 'value', 'unit'), [(k, f'{v:.6g}', 'as logged') for k, v in delta.metrics.items()], 'lll'
        )
        if delta.metrics
        else 'Metrics of these weights were not recorded.',
        markdown_table(('adjustment', 'number'), [(k, str(n)) for k, n in delta.adapters.items()], 'll'),
        f'Trained to {_pairs(delta.position)}; written with {_pairs(delta.versions)}. Training settings: '
        f'`{_config_name(delta)}`.',
    ]
    return '\n\n'.join(sections) + '\n'


def _pairs(entries: dict) -> str:
    return ', '.join(f'{k} {v}' for k, v in entries.items()) or 'an unknown position'
