"""A scaled config from a config and a checkpoint that somebody has: found by structure, proved, then written."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..backbones.scaled import ScaledBackbone
from ..compat import quiet, read_config, scope_of, type_class, type_name
from ..core.adapters import ADAPTER_RANK
from ..core.scale import ADJUST
from ..engine.optim import PARAMWISE_KEYS
from ..file_names import require_suffix
from ..runner.built import typed
from ..runner.config import CONSTRUCTOR, move_data_root
from .adoption_proofs import Proofs, at, prove, without_weights
from .adoption_schedule import shorten
from .adoption_text import difference, leaf_text, without_scope
from .made_up import SAMPLES

_EXISTS = '{} exists and is not written over; choose another name.'


class AdoptionError(ValueError):
    """What about a config or checkpoint does not fit, and the way out."""


@dataclass(frozen=True)
class Host:
    """A class of a library that one of ours replaces, argument by argument.

    Attributes:
        ours: the type.
        order, last_stage_only: the paper's choice of layers.
        same_code: ours computes in the same order, so that outputs are equal bit for bit; else up to rounding.
    """

    ours: str
    order: str
    last_stage_only: bool
    same_code: bool = True


SWIN = Host('ScaleNetSwin', 'stack', last_stage_only=True)
VIT = Host('ScaleNetDeiT', 'interpolate', last_stage_only=False)
HOSTS = {
    'mmpretrain.models.backbones.swin_transformer.SwinTransformer': SWIN,
    'mmdet.models.backbones.swin.SwinTransformer': SWIN,
    'mmseg.models.backbones.swin.SwinTransformer': SWIN,
    'mmpretrain.models.backbones.vision_transformer.VisionTransformer': VIT,
    'mmseg.models.backbones.vit.VisionTransformer': replace(VIT, same_code=False),
}


@dataclass(frozen=True)
class Adopted:
    """What came of it.

    Attributes:
        config: the scaled config, as it was read back from ``text``.
        text: of the file.
        backbone: where in the config the backbone is, such as ``'model.backbone'``.
        proofs: what was compared.
    """

    config: Config
    text: str
    backbone: str
    proofs: Proofs


def init(
    config: str | Path | Config,
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    times: float = 2,
    order: str | None = None,
    stages: Sequence[int] | None = None,
    layers: Sequence[int] | str | None = None,
    rank: int = ADAPTER_RANK,
    also: Sequence[str] = (),
    start: str = 'paper',
    data_root: str | None = None,
    keep_schedule: bool = False,
) -> Config:
    """The config of a model of yours with its backbone scaled, proved before it is there.

    Args:
        config: of mmdet, mmseg or mmpretrain: a file or ``mmdet::...``.
        checkpoint: of the whole model or of its backbone, of any dialect: path, ``http(s)://`` or ``hf://``.
        out: the file to write; nothing is written where it is left out, and nothing is written over.
        times, order, stages, layers, start: see ``ScaleNetSwin`` and ``ScaleNetDeiT``; the paper's where left out.
        rank: of the adapters.
        also: patterns of parameters that are trained besides, as in ``policy``.
        data_root: replaces the folder of the data.
        keep_schedule: the config's own epochs and learning rate, instead of the paper's.

    Raises:
        ValueError: with what does not fit, where, and the way out; then nothing is left behind.
    """
    scale = dict(times=times, order=order, stages=stages, layers=layers, rank=rank, start=start)
    return adopt(config, checkpoint, out, scale, also, data_root, keep_schedule).config


def adopt(
    config: str | Path | Config,
    checkpoint: str | Path,
    out: str | Path | None,
    scale: Mapping[str, Any],
    also: Sequence[str] = (),
    data_root: str | None = None,
    keep_schedule: bool = False,
) -> Adopted:
    """`init`, with all that it found out."""
    out = None if out is None else require_suffix(out, '.py')
    if out is not None and os.path.lexists(out):
        raise AdoptionError(_EXISTS.format(out))
    base = config if not isinstance(config, Config) else config.filename
    if base is None:
        raise AdoptionError('A config without a file cannot be inherited from; write it to one (Config.dump) first.')
    in_file = read_config(base)
    cfg = read_config(config if isinstance(config, Config) else in_file)
    in_file.default_scope = cfg.default_scope = scope = scope_of(cfg)
    if scope not in SAMPLES:
        raise AdoptionError(f'{base} has default_scope={scope!r}, which says no task; it must be one of {[*SAMPLES]}.')
    where, host = find_backbone(cfg)
    wanted = scaled(cfg, where, host, scale)
    folder = Path(out).absolute().parent if out else Path.cwd()
    if data_root:
        _move_data(wanted, str(data_root))  # before the checkpoint is named, which may lie beside the data
    _own_run(wanted, checkpoint, out)
    if not keep_schedule:
        shorten(wanted)
    proofs = prove(cfg, wanted, where, str(checkpoint), also, host.same_code)
    if not proofs.whole:
        at(wanted, where)['init_cfg'] = dict(type='Pretrained', checkpoint=str(checkpoint))
        wanted.load_from = None
    elif type_name(wanted.model.get('init_cfg') or {}) == 'Pretrained':
        wanted.model.init_cfg = None  # the checkpoint holds all of it
    if proofs.unused and not cfg.get('find_unused_parameters'):
        wanted.find_unused_parameters = True
    wanted.policy = dict(train='increments', also=list(proofs.also)) if proofs.also else dict(train='increments')
    changed = without_scope(difference(in_file._cfg_dict.to_dict(), wanted._cfg_dict.to_dict()), scope)
    merged = {key for key in changed if isinstance(in_file.get(key), dict)} if in_python(base) else ()
    text = leaf_text(_inherits(base, folder), changed, where, merged)
    return Adopted(_written(text, folder, out), text, where, proofs)


# --- what is there


def find_backbone(cfg: Config) -> tuple[str, Host]:
    """Where the one backbone that can be scaled is, and what it is.

    Raises:
        AdoptionError: if there is none, or several.
    """
    found, near = {}, []
    with DefaultScope.overwrite_default_scope(cfg.default_scope), MODELS.switch_scope_and_registry(None) as known:
        for where, node in typed(cfg.get('model') or {}, 'model'):
            kind = type_class(node, known)
            if not isinstance(kind, type):
                continue
            if issubclass(kind, ScaledBackbone):
                raise AdoptionError(
                    f'{where} is a {type_name(node)}, which is scaled already; train the config as it is.'
                )
            names = [f'{base.__module__}.{base.__qualname__}' for base in kind.__mro__]
            if names[0] in HOSTS:
                found[where] = HOSTS[names[0]]
            elif any(name in HOSTS for name in names):
                near.append(f'{where} ({kind.__name__}) changes what its base class computes')
            elif where.endswith('backbone'):
                near.append(f'{where} is a {kind.__name__}')
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise AdoptionError(
            f'{cfg.filename} has several backbones that can be scaled: {", ".join(found)}. Swap the type of the one '
            'that is meant by hand (docs/interop.md).'
        )
    raise AdoptionError(
        f'{cfg.filename} has no backbone that can be scaled by its config: {"; ".join(near) or "none was found"}. '
        f'Known are {", ".join(sorted(HOSTS))}; of timm and Hugging Face: ScaleNetTimm, ScaleNetHF (docs/hosts.md).'
    )


# --- what is wanted


def scaled(cfg: Config, where: str, host: Host, scale: Mapping[str, Any]) -> Config:
    """The config with its backbone swapped, by the paper's rule for that host where nothing else is asked for."""
    wanted = copy.deepcopy(cfg)
    node = at(wanted, where)
    given = {key: value for key, value in scale.items() if value is not None and key not in ('rank', 'start')}
    rule: dict[str, Any] = dict(order=host.order)
    if host.last_stage_only and 'stages' not in given:
        rule['stages'] = (_stages(node) - 1,)
    if scale.get('start', 'paper') != 'paper':
        rule['start'] = scale['start']
    node['type'] = host.ours
    node['scale'] = {**dict(times=2), **rule, **given}
    if scale['rank'] != ADAPTER_RANK:
        node['scale']['adjust'] = dict(ADJUST, rank=scale['rank'])
    node.update(without_weights(node))  # the checkpoint holds more
    if node.get('frozen_stages', -1) != -1:
        node['frozen_stages'] = -1  # the policy says what is trained
    if isinstance(given_outputs := node.get('out_indices'), int):
        (node['out_indices'],) = outputs({**node, 'out_indices': (given_outputs,)}, cfg.default_scope)
    elif given_outputs is not None:
        node['out_indices'] = type(given_outputs)(outputs(node, cfg.default_scope))
    if wanted.model.get('pretrained') is not None:
        wanted.model.pretrained = None
    _own_constructor(wanted.get('optim_wrapper') or {})
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'scalenet_mm' not in imports:
        wanted.custom_imports = {**(cfg.get('custom_imports') or {}), 'imports': [*imports, 'scalenet_mm']}
    wanted.runner_type = 'ScaleNetRunner'
    return wanted


def _own_run(wanted: Config, checkpoint: str | Path, out: str | Path | None) -> None:
    """A run from the checkpoint in a folder of its own: the user's holds checkpoints of theirs, of the same names."""
    wanted.load_from = str(checkpoint)
    if wanted.get('resume'):
        wanted.resume = False
    if wanted.get('work_dir') is not None:
        wanted.work_dir = None  # the tools then take work_dirs/ and the config's name
    if out is not None and Path(checkpoint).absolute().parent == (Path('work_dirs') / Path(out).stem).absolute():
        raise AdoptionError(
            f'A run of {out} writes into work_dirs/{Path(out).stem}, where {checkpoint} is, and would write over it; '
            'choose another name.'
        )


def _own_constructor(training: dict) -> None:
    """The library's constructors of rates by depth count a pretrained network's layers and know no policy."""
    if training.get('constructor') is None or type_name(training['constructor']) == CONSTRUCTOR:
        return
    training['constructor'] = CONSTRUCTOR
    if training.get('paramwise_cfg'):
        training['paramwise_cfg'] = {k: v for k, v in training['paramwise_cfg'].items() if k in PARAMWISE_KEYS}


def _move_data(wanted: Config, root: str) -> None:
    try:
        move_data_root(wanted, root, option='--data-root')
    except SystemExit as refusal:
        raise AdoptionError(f'{refusal} in the written config.') from refusal


def outputs(node: Mapping, scope: str) -> list[int]:
    """``out_indices`` of a backbone's config once it is scaled: where they count layers, each one's last instance."""
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'), quiet():
        containers = MODELS.build({**node, 'out_indices': (0,)})._containers()
    if len(containers) > 1:  # stages, whose number stays
        return list(node['out_indices'])
    sources = containers[0][1].layer_map.sources
    last = {source: i for i, source in enumerate(sources)}
    return [last[i % len(last)] for i in node['out_indices']]


def _stages(node: Mapping) -> int:
    arch = node.get('arch')
    depths = node.get('depths') or (arch.get('depths') if isinstance(arch, Mapping) else None)
    return len(depths) if depths else 4  # of every Swin that has a name


# --- the file


def in_python(base: str | Path) -> bool:
    """Whether a config is written in mmengine's pure-Python form, which the form in text cannot inherit from."""
    return '::' not in str(base) and Path(base).suffix == '.py' and Config._is_lazy_import(str(base))


def _inherits(base: str | Path, folder: Path) -> list[str]:
    """The lines that inherit: from ``mmdet::...`` as it is, from a file as seen from the folder of the new one.

    Raises:
        AdoptionError: if a pure-Python config's path cannot be imported.
    """
    if '::' in str(base):
        return [f'_base_ = {str(base)!r}']
    path = os.path.relpath(Path(base).absolute(), folder)
    if os.path.realpath(folder / path) != os.path.realpath(base):  # '..' of a folder that is a link
        path = str(Path(base).absolute())
    if not in_python(base):
        return [f'_base_ = {path!r}']
    up, names = path.count('../'), Path(path.replace('../', '')).with_suffix('').parts
    if path.startswith('/') or not all(name.isidentifier() for name in names):
        raise AdoptionError(f'{base} is in pure Python, and {path} cannot be imported; write the new config beside it.')
    module = f'.{"." * up}{".".join(names)}'
    return ['from mmengine.config import read_base', '', 'with read_base():', f'    from {module} import *', '']


def _written(text: str, folder: Path, out: str | Path | None) -> Config:
    """The config of ``text`` as mmengine reads it in ``folder``; kept as ``out``, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile('w', suffix='.py', prefix='.init_', dir=folder, delete=False) as file:
        file.write(text)
    try:
        cfg = read_config(file.name)
        if out is not None:
            with open(out, 'x') as written:  # refuses what is there
                written.write(text)
        return read_config(out) if out else cfg
    except FileExistsError as error:
        raise AdoptionError(_EXISTS.format(out)) from error
    finally:
        os.unlink(file.name)
