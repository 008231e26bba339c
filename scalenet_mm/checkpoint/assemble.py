"""Between full checkpoints, bases and deltas: models are built from configs and filled as the Runner fills them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from ..compat import read_config
from ..core.adapters import Adjustment
from ..core.roles import roles
from ..file_names import require_suffix
from ..version import __version__
from .config_text import is_json, parse_config, registered_only
from .delta_file import SHORT, SUFFIX, Delta, check, read_delta, structure
from .digests import digests, fingerprint
from .loading import build_model, load_base, load_weights
from .reading import dataset_meta, read_checkpoint, unwrap
from .strict import CheckpointError, naming, require
from .writing import pickled, write_atomically


def export_delta(
    checkpoint: str | Path, base: str | Path, out: str | Path | None = None, config: str | Path | Config | None = None
) -> Delta:
    """Takes from a full checkpoint what its base does not supply, or supplies differently, bit by bit.

    Args:
        checkpoint: the full checkpoint, as the Runner writes it.
        base: what the run started from (``load_from``), of any dialect, scaled or not.
        out: where to write the delta; None writes none.
        config: by default the one inside ``checkpoint``.

    Raises:
        CheckpointError: if there is no config, or a file does not fit it.
    """
    if out is not None:
        require_suffix(out, '.safetensors')
    if str(checkpoint).endswith(SUFFIX):
        raise CheckpointError(
            f'{checkpoint} is a delta already, and that of a full checkpoint is taken; `scalenet delta apply` makes '
            'one of base and delta.'
        )
    content = read_checkpoint(checkpoint)
    with naming(checkpoint):
        state, meta = unwrap(content), content.get('meta') or {}
    cfg, model = _build(config, meta.get('cfg'), checkpoint)
    load_base(model, base)
    theirs, mine = digests(model.state_dict()), digests(state)
    changed = [name for name in mine if mine[name] != theirs.get(name)]
    if len(changed) == len(mine):
        print_log(
            f'No tensor of {checkpoint} is that of {base}, so the delta holds them all: either everything was trained, '
            'or this is not what the run started from (its load_from).',
            'current',
            logging.WARNING,
        )
    if not changed:
        print_log(
            f'Every tensor of {checkpoint} is that of {base}, so the delta holds nothing; name as the base what the '
            'run started from (its load_from).',
            'current',
            logging.WARNING,
        )
    text = meta['cfg'] if config is None else cfg.pretty_text
    delta = make_delta(state, changed, model, base_name(base), text, meta, found=mine)
    if out is not None:
        delta.save(out)
    return delta


def make_delta(
    state: Mapping[str, Tensor],
    changed: Iterable[str],
    model: nn.Module,
    base: str,
    config: str,
    meta: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    found: Mapping[str, str] | None = None,
) -> Delta:
    """The delta of a full state dict.

    Args:
        state: every entry of ``model.state_dict()``, with the trained values.
        changed: the entries that the delta sets; the others are those of the base.
        model: says the structure and roles; its values are not looked at.
        base: name of the base's file, or its address.
        config: text of the config.
        meta: a checkpoint's ``meta``, for position and classes.
        metrics: of these weights; what is no single number, as a confusion matrix, is left out.
        found: ``digests(state)``, if they are there already.

    Raises:
        CheckpointError: if the entries are not the model's.
    """
    present = model.state_dict()
    require(
        {k: v.shape for k, v in present.items()}, state, what='the model of the config', where='the full checkpoint'
    )
    theirs, mine = structure(state), structure(present)
    other = {n: v for n, v in theirs.items() if any(mine.get(n, {}).get(k) != x for k, x in v.items())}
    if other:
        name, entry = next(iter(other.items()))
        raise CheckpointError(
            f'the full checkpoint is of a network with other layer maps or another kind of adjustment than the config '
            f'({name or "the top"}: {entry}, the config {mine.get(name)}), though their names are the same; give the '
            'config that it was trained with'
        )
    changed, meta = set(changed), meta or {}
    found = digests(state) if found is None else found
    rest = {k: found[k] for k in state if k not in changed}
    by_role: dict[str, tuple[int, int]] = {}
    role_of = roles(model)
    for name in sorted(changed):
        role = str(role_of.get(name, 'buffer'))
        tensors, nbytes = by_role.get(role, (0, 0))
        by_role[role] = tensors + 1, nbytes + state[name].nbytes
    said = dataset_meta({'meta': meta})
    return Delta(
        tensors={k: state[k] for k in sorted(changed)},
        base=base,
        fingerprint=fingerprint(rest),
        base_digests={k: v[:SHORT] for k, v in rest.items()},
        structure=structure(present),
        adapters=dict(Counter(_describe(m) for m in model.modules() if isinstance(m, Adjustment))),
        roles=by_role,
        config=config,
        dataset_meta={
            k: json.loads(json.dumps(said[k], default=lambda x: x.tolist()))
            for k in ('classes', 'palette')
            if said.get(k) is not None
        },
        versions=dict(scalenet_mm=__version__, torch=torch.__version__, mmengine=mmengine.__version__),
        position={k: meta[k] for k in ('epoch', 'iter') if k in meta},
        metrics=_numbers(metrics or {}),
    )


def assemble(
    delta: Delta | str | Path, base: str | Path | None = None, config: str | Path | Config | None = None
) -> nn.Module:
    """Base + delta: the trained model, in eval mode on the CPU.

    >>> model = assemble('hf://owner/repo', 'mask_rcnn_swin_tiny.pth')  # doctest: +SKIP

    Args:
        delta: a delta, or what ``read_delta`` takes.
        base: the base's file or address; needed if the delta knows but its file name.
        config: by default the one inside the delta.

    Raises:
        CheckpointError: if the parts do not fit each other.
    """
    delta = delta if isinstance(delta, Delta) else read_delta(delta)
    if base is None and '://' not in delta.base:
        raise CheckpointError(f'The delta stands on the file {delta.base}; name it: base=PATH.')
    model = _build(config, delta.config, 'the delta')[1]
    load_weights(model, base or delta.base, delta)
    if delta.dataset_meta:
        model.dataset_meta = delta.dataset_meta  # what mmdet's and mmseg's inference looks for
    model.eval()
    return model


def apply_to_file(
    base: str | Path, delta: str | Path, out: str | Path, config: str | Path | Config | None = None
) -> Delta:
    """Writes base + delta as a full checkpoint that the Runner loads (``load_from``, ``tools/test.py``).

    Raises:
        CheckpointError: if the parts do not fit each other.
    """
    require_suffix(out, '.pth')
    read = read_delta(delta)
    model = assemble(read, base, config)
    meta = dict(cfg=_config(config, read.config, delta).pretty_text, dataset_meta=read.dataset_meta, **read.position)
    write_atomically(out, pickled(dict(meta=meta, state_dict=model.state_dict())))
    return read


def verify_delta(base: str | Path, delta: str | Path, config: str | Path | Config | None = None) -> Delta:
    """Checks that a delta is whole and stands on this base.

    Raises:
        CheckpointError: naming what differs.
    """
    read = read_delta(delta)
    model = _build(config, read.config, delta)[1]
    load_base(model, base)
    with naming(delta):
        check(read, model.state_dict(), base)
    return read


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        with suppress(TypeError, ValueError, RuntimeError):  # lists, texts, tensors of several elements
            found[name] = float(value)
    return found


def base_name(base: str | Path) -> str:
    """How a delta names its base: the address, or the file name of a local path."""
    return str(base) if '://' in str(base) else Path(base).name


def _build(given: Any, text: str | None, where: str | Path) -> tuple[Config, nn.Module]:
    """The config that is given, or the one inside a file, and its model."""
    cfg = _config(given, text, where)
    if given is not None:
        return cfg, build_model(cfg)
    imports = (cfg.get('custom_imports') or {}).get('imports') or ()
    modules = [imports] if isinstance(imports, str) else [*imports]
    built = cfg.model, cfg.get('data_preprocessor')
    with registered_only(str(where), built, [*modules, cfg.get('default_scope') or 'mmengine']):
        return cfg, build_model(cfg)


def _config(given: Any, text: str | None, where: str | Path) -> Config:
    if given is not None:
        return read_config(given)
    if not text:
        raise CheckpointError(
            f'{where} holds no config; name the one it was trained with: --config CFG (config=... in Python).'
        )
    if is_json(text) or 'model' not in (cfg := parse_config(text, str(where))):
        raise CheckpointError(
            f'{where} is of a network that scalenet_mm.scale made in Python, and holds no config of a model (a '
            'language model is evaluated by scalenet lm-eval --increments); put it on its source with '
            'scalenet_mm.checkpoint.live_delta.scale_by_delta(network, delta).'
        )
    return cfg


def _describe(adjustment: Adjustment) -> str:
    shapes = ' '.join('x'.join(map(str, p.shape)) or '1' for p in adjustment.parameters())
    return f'{type(adjustment).__name__}({adjustment.extra_repr()}) {shapes}'
