"""What a config builds: each dict of it with the classes that it may be built from, and the names that they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from mmengine import registry as root
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

from ..backbones import ScaleNetDeiT, ScaleNetSwin, ScaleNetTimm
from ..compat import LIBRARIES, importing_libraries, quiet
from ..core.adapters import ADJUSTMENTS, Adjustment, ParallelAdapter

ALIKE = 0.8  # of difflib: one letter left out, doubled or changed, or two changed about
HANDED_ON = 0.9  # for arguments that a class hands to its bases, of which it may take some out before
A_TYPE = 0.85  # for types, some of which are names of a library's own: 'conv' is no slip of 'deconv'
REGISTRIES = [value for value in vars(root).values() if isinstance(value, Registry)]

# What is built where a config names no type, by the key of the dict
DEFAULTS: dict[str, tuple[Callable, ...]] = {
    **dict.fromkeys(('train_dataloader', 'val_dataloader', 'test_dataloader', 'gallery_dataloader'), (DataLoader,)),
    'train_cfg': (EpochBasedTrainLoop, IterBasedTrainLoop),
    'val_cfg': (ValLoop,),
    'test_cfg': (TestLoop,),
    'optim_wrapper': (OptimWrapper,),
    'log_processor': (LogProcessor,),
    'randomness': (Runner.set_randomness,),
    'model.backbone.scale.adjust': (ParallelAdapter,),
}
# What is taken out of a dict before the rest goes to its class
TAKEN_OUT: dict[type, set[str]] = {
    Hook: {'priority'},
    OptimWrapper: {'constructor', 'paramwise_cfg', 'optimizer'},
    _ParamScheduler: {'convert_to_iter_based'},
    DataLoader: {'num_batch_per_epoch', 'disable_subprocess_warning'},
    EpochBasedTrainLoop: {'by_epoch'},
    Adjustment: {'targets'},
}
# The names in dicts that no signature tells; others may stand there too
NAMES: dict[str, set[str]] = {
    'scale': {name for kind in (ScaleNetDeiT, ScaleNetSwin, ScaleNetTimm) for name in kind.scale_defaults},
    'default_hooks': {
        *('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint', 'visualization')
    },
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'paramwise_cfg': {
        *('custom_keys', 'bypass_duplicate', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'),
        *('dwconv_decay_mult', 'dcn_offset_lr_mult', 'num_layers', 'decay_rate', 'decay_type'),
        *('layer_decay_rate', 'policy'),
    },
}


class Known:
    """What is registered, as the scope of a config sees it: its library's own first."""

    def __init__(self, scope: str | None):
        self.by_name: dict[str, list[Callable]] = {name: [kind] for name, kind in ADJUSTMENTS.items()}
        with quiet(), DefaultScope.overwrite_default_scope(scope):  # mmengine names each registry that a library lacks
            for registry in REGISTRIES:
                with registry.switch_scope_and_registry(None) as known:
                    for name, kind in _registered(known).items():
                        self.by_name.setdefault(name, []).append(kind)

    def classes(self, kind: Any) -> list[Callable]:
        """What a ``type`` may mean: itself, or whatever is registered by its name."""
        if not isinstance(kind, str):
            return [kind]
        if '.' not in kind:
            return self.by_name.get(kind, [])  # Registry.get would import a module of that name where it finds none
        found = next((found for r in REGISTRIES if (found := r.get(kind)) is not None), None)
        return [] if found is None else [found]

    def names(self, kind: str) -> Iterable[str]:
        """Those that may have been meant by a ``type``, which may name a library."""
        library = kind.partition('.')[0]
        return Known(library).by_name if library in LIBRARIES else self.by_name


def _registered(known: Registry) -> dict[str, Callable]:
    with importing_libraries():
        known.import_from_location()
    return {**(_registered(known.parent) if known.parent else {}), **known.module_dict}


def dicts(node: Any, where: str = '') -> Iterator[tuple[str, Mapping]]:
    """Every dict of a config, with its key; not losses of a model, whose dicts heads take keys out of."""
    if isinstance(node, Mapping):
        yield where, node
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if isinstance(value, (Mapping, list, tuple)) and not str(key).startswith('loss'):
            yield from dicts(value, f'{where}.{key}' if where else str(key))


def typed(node: Any, where: str) -> Iterator[tuple[str, Mapping]]:
    """Those of `dicts` with a ``type``."""
    return ((key, part) for key, part in dicts(node, where) if 'type' in part)


def takers(where: str, node: Mapping, known: Known) -> list[Callable]:
    """The classes that a dict may be built from; none where nothing tells."""
    return known.classes(node['type']) if 'type' in node else list(DEFAULTS.get(where, ()))


def names_taken(where: str, node: Mapping, known: Known) -> tuple[set[str], float]:
    """The names that a dict of a config may have, and from which likeness on another one is a slip of one of them."""
    found = [arguments_taken(kind) for kind in takers(where, node, known)]
    if not found:
        found = [(NAMES.get(where.rpartition('.')[2], set()), ALIKE)]
    return {name for names, _ in found for name in names}, max((cutoff for _, cutoff in found), default=ALIKE)


def arguments_taken(kind: Callable) -> tuple[set[str], float]:
    """The names that a class takes, those of its bases too where it hands on what it does not know, and from which
    likeness on another name is a slip of one.
    """
    if hasattr(kind, 'arguments_taken'):  # ours, which know what their hosts take
        return {'type', *kind.arguments_taken()}, ALIKE
    names, cutoff = {'type'}, ALIKE
    mro = kind.__mro__[:-1] if isinstance(kind, type) else ()
    for base, out in TAKEN_OUT.items():
        names |= out if base in mro else set()
    for makes in [vars(base)['__init__'] for base in mro if '__init__' in vars(base)] or [kind]:
        try:
            parameters = list(inspect.signature(makes).parameters.values())
        except (TypeError, ValueError):  # written in C
            return set(), HANDED_ON
        names.update(p.name for p in parameters if p.name != 'self' and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return names, cutoff
        cutoff = HANDED_ON
    return names, cutoff
