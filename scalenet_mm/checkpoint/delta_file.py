"""Increments as files: what training changed, to be put on the base it was trained from.

A delta is a ``.safetensors`` of those entries of a model's state dict that its base does not supply, or supplies
differently. Its header says which tensors it stands on, and only on those it is applied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..compat import bare
from ..file_names import require_suffix
from ..version import __version__
from .digests import digests, fingerprint
from .reading import DELTA, read_checkpoint
from .strict import SHOWN, CheckpointError, naming, require, require_values
from .writing import write_atomically

FORMAT_VERSION = 1
SUFFIX = '.delta.safetensors'
PUSHED = f'model{SUFFIX}'  # the file of a pushed folder or Hub repository
SEAL = 'header_sha256'  # of all other entries of the header; files of 0.1.0 have none
SHORT = 8  # hex digits that tell one base tensor from another; the fingerprint has all


def beside(checkpoint: str | Path) -> Path:
    """Where the delta of a checkpoint lies: ``epoch_3.pth`` has ``epoch_3.delta.safetensors``, ``v1.3`` keeps its 3."""
    path = Path(checkpoint)
    return path.with_name((path.stem if path.suffix[1:].isalpha() else path.name) + SUFFIX)


@dataclass(frozen=True)
class Delta:
    """A delta file's content.

    Attributes:
        tensors: the entries of the state dict that it sets.
        base: name of the base's file, or its address.
        fingerprint: SHA-256 of all other entries, which it stands on, see ``fingerprint``.
        base_digests: the beginning of the SHA-256 of each of them, by name.
        structure: layer maps and kind of adjustment of each scaled module, as in the state dict's ``_metadata``.
        adapters: how many adjustments of which dimensions.
        roles: tensors and bytes of ``tensors`` by role; buffers by themselves.
        config: text of the config.
        dataset_meta: classes and palette.
        versions: of what wrote it.
        position: epoch and iteration.
        metrics: of the validation of these very weights, if there was one.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    base: str
    fingerprint: str
    base_digests: dict[str, str] = field(repr=False)
    structure: dict[str, dict[str, Any]]
    adapters: dict[str, int]
    roles: dict[str, tuple[int, int]]
    config: str = field(repr=False)
    dataset_meta: dict[str, Any]
    versions: dict[str, str]
    position: dict[str, int]
    metrics: dict[str, float]

    def save(self, path: str | Path) -> None:
        """Writes the file, whole or not at all; its name ends in ``.safetensors``."""
        from safetensors.torch import save

        require_suffix(path, '.safetensors')

        header = {f.name: json.dumps(getattr(self, f.name)) for f in fields(self)[1:]}
        header |= dict(format=DELTA, format_version=str(FORMAT_VERSION), contents=self.contents)
        header[SEAL] = _sealed(header)
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in self.tensors.items()}
        write_atomically(path, save(tensors, header))

    @property
    def contents(self) -> str:
        """SHA-256 of the delta's own tensors."""
        return fingerprint(digests(self.tensors))

    @property
    def layer_maps(self) -> dict[str, list[int]]:
        """The source layer of each layer, by the name of the container of layers."""
        found = {}
        for module, entry in self.structure.items():
            maps = entry.get('layer_maps', {'': entry['layer_map']} if 'layer_map' in entry else {})
            found |= {f'{module}.{name}'.strip('.'): sources for name, sources in maps.items()}
        return found

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


def structure(state_dict: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What scaled networks of the same keys and shapes may differ in, by module: layer maps and kind of adjustment."""
    kept = ('adjust', 'layer_map', 'layer_maps')
    metadata = getattr(state_dict, '_metadata', {})
    found = {name: {k: m[k] for k in kept if k in m} for name, m in metadata.items()}
    return {name: entry for name, entry in found.items() if entry}


def read_delta(source: str | Path) -> Delta:
    """Reads a delta.

    Args:
        source: a file (path, ``file://``, ``http(s)://``, ``hf://owner/repo/file``), or what ``scalenet delta push``
            wrote: a folder or ``hf://owner/repo``.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if it is truncated, damaged, no delta, or of another format version.
    """
    address = str(source).rstrip('/')
    repo, at, revision = address.partition('@')  # a revision may be refs/pr/1
    if repo.startswith('hf://') and repo.count('/') == 3:
        address = f'{repo}/{PUSHED}{at}{revision}'
    elif '://' not in address and Path(address).expanduser().is_dir():
        address = f'{address}/{PUSHED}'
    content = read_checkpoint(address)
    header = content.get('metadata') or {}
    if not isinstance(header, Mapping) or header.get('format') != DELTA:
        raise CheckpointError(
            f'{address} is not a delta: a delta is a .safetensors whose header says format={DELTA}. A full checkpoint '
            'becomes one with: scalenet delta export CKPT --base BASE'
        )
    if header.get(SEAL, _sealed(header)) != _sealed(header):
        raise CheckpointError(f'{address} is damaged: its header is not the one that was written; fetch it again.')
    try:
        version = int(header['format_version'])
        given = {f.name: json.loads(header[f.name]) for f in fields(Delta)[1:]} if version == FORMAT_VERSION else {}
    except (KeyError, ValueError) as e:
        raise CheckpointError(f'{address} is damaged: its header has no readable {e}; fetch it again.') from e
    if version != FORMAT_VERSION:
        way_out = (
            'update scalenet_mm'
            if version > FORMAT_VERSION
            else 'export it again from its full checkpoint: scalenet delta export CKPT --base BASE'
        )
        raise CheckpointError(
            f'{address} is a delta of format {version}, and this scalenet_mm ({__version__}) reads format '
            f'{FORMAT_VERSION}; {way_out}.'
        )
    return Delta(tensors=dict(content['state_dict']), **given)


def check(delta: Delta, state: Mapping[str, Tensor], base: str | Path | None = None) -> None:
    """Raises unless the delta fits a model that holds its base.

    Args:
        state: the model's state dict, with its ``_metadata``.
        base: the file that it was filled from, where a user named one.

    Raises:
        CheckpointError: for another layer map, kind of adjustment, set of names, shape, or base; the message names
            what differs.
    """
    mine = structure(state)
    if mine != delta.structure:
        differing = sorted(n for n in mine | delta.structure if mine.get(n) != delta.structure.get(n))
        lines = [f'  {n or "the top"}: delta {delta.structure.get(n)}, model {mine.get(n)}' for n in differing]
        raise CheckpointError(
            'The delta is of a network with other layer maps or another kind of adjustment, and nothing was changed:\n'
            + '\n'.join(lines)
            + "\nBuild the model from the delta's config."
        )
    require(
        {k: v.shape for k, v in state.items() if k not in delta.base_digests},
        delta.tensors,
        what="the model (entries beside the base's)",
        where='the delta',
    )
    require_values(state, delta.tensors, 'the delta')
    found = digests({k: state[k] for k in delta.base_digests if k in state})
    wrong = [k for k, digest in delta.base_digests.items() if found.get(k, '')[:SHORT] != digest]
    if wrong or fingerprint(found) != delta.fingerprint:
        more = f'\n  ... and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
        raise CheckpointError(
            f'The delta stands on {delta.base} (sha256 {delta.fingerprint[:16]}), and {base or "the model"} holds '
            f'another base (sha256 {fingerprint(found)[:16]}), so nothing was changed. '
            f'{len(wrong)} of {len(delta.base_digests)} tensors differ or are missing:\n'
            + '\n'.join(f'  {name}' for name in wrong[:SHOWN])
            + f'{more}\n'
            + (f'Name {delta.base} in the place of {base}.' if base else f'Load {delta.base} into the model first.')
        )


def apply_delta(model: nn.Module, delta: Delta | str | Path, base: str | Path | None = None) -> Delta:
    """Puts a delta on a model that holds its base, in place: ties, optimizers and wrappers keep their tensors.

    The model keeps its dtypes too: what the delta holds in a finer one is rounded, which is logged.

    Args:
        delta: a delta, or what ``read_delta`` takes.
        base: the file that the model was filled from, for the message.

    Raises:
        CheckpointError: before anything is changed, see ``read_delta`` and ``check``.
    """
    if not isinstance(delta, Delta):
        with naming(delta):
            return apply_delta(model, read_delta(delta), base)
    state = bare(model).state_dict()
    check(delta, state, base)
    tell_rounded('the delta', {(t.dtype, state[n].dtype) for n, t in delta.tensors.items()})
    put(bare(model), delta.tensors)
    return delta


def tell_rounded(where: str, dtypes: Collection[tuple[torch.dtype, torch.dtype]], way_out: str = '') -> None:
    """Logs which tensors lose digits, if some do: pairs of the dtype that they are stored in and the model's."""
    coarser = sorted(f'{stored} in {kept}' for stored, kept in dtypes if kept.itemsize < stored.itemsize)
    if coarser:
        told = ', '.join(coarser).replace('torch.', '')
        print_log(f'Tensors of {where} are rounded, since the model keeps its own dtype: {told}{way_out}.', 'current')


class DeltaSwitch:
    """Several deltas on one base in memory, one of them (or none) in use.

    >>> switch = DeltaSwitch(model)                      # doctest: +SKIP
    >>> switch.add('night', 'night.delta.safetensors')   # doctest: +SKIP
    >>> switch.use('night')                              # doctest: +SKIP
    >>> switch.use(None)                                 # the base again, bit for bit; doctest: +SKIP

    The deltas must have the model's shapes: heads of another number of classes need a model of their own.

    Args:
        model: holds the base.
    """

    def __init__(self, model: nn.Module):
        self.model = bare(model)
        self.active: str | None = None
        self._base: dict[str, Tensor] = {}  # the base's values of what some delta sets
        self._deltas: dict[str, Delta] = {}

    @property
    def names(self) -> list[str]:
        return list(self._deltas)

    def add(self, name: str, delta: Delta | str | Path) -> Delta:
        """Reads a delta and checks it against the base; nothing is changed.

        Raises:
            CheckpointError: see ``apply_delta``.
            ValueError: if the name is in use.
        """
        if name in self._deltas:
            raise ValueError(f'there is a delta {name!r} already; the names are {self.names}.')
        delta = delta if isinstance(delta, Delta) else read_delta(delta)
        state = self.model.state_dict()
        state.update(self._base)
        check(delta, state)
        for key in delta.tensors.keys() - self._base.keys():
            self._base[key] = state[key].clone()
        self._deltas[name] = delta
        return delta

    def use(self, name: str | None) -> None:
        """Puts a delta in place of the one in use; None restores what the model held when its deltas were added.

        Raises:
            ValueError: if no delta has the name.
        """
        if name is not None and name not in self._deltas:
            raise ValueError(f'there is no delta {name!r}; the names are {self.names}.')
        wanted = self._deltas[name].tensors if name is not None else {}
        put(self.model, {**self._base, **wanted})
        self.active = name


@torch.no_grad()
def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes values into a model's tensors of these names."""
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)


def _sealed(header: Mapping[str, str]) -> str:
    """SHA-256 of a header, apart from its seal."""
    return hashlib.sha256(json.dumps(sorted((k, v) for k, v in header.items() if k != SEAL)).encode()).hexdigest()
