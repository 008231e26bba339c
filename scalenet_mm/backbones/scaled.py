"""What scaling adds to a host backbone, the same for every host: spec, ties, loading, checkpointed blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoint.dialects import split, to_host
from ..checkpoint.reading import read_checkpoint, strip_prefix, unwrap
from ..checkpoint.strict import CheckpointError, StrictBackbone, naming, require, require_values
from ..compat import init_cfgs
from ..core.adapters import Adjustment
from ..core.growth import Growth, grow
from ..core.layer_map import LayerMap
from ..core.scale import ADJUST, adjust_layers
from ..core.spread import check_stored_map, expand
from ..core.tying import scaled_layers, tie
from ..ops import blocks as _fast_blocks  # noqa: F401 - registers them
from ..ops import set_ops
from .arguments import unknown

UNSCALED = dict(times=1, adjust=None)  # the `scale` of the host itself


class ScaledBackbone(StrictBackbone):
    """Mixed in before an mmpretrain backbone that was built at the scaled depth.

    Subclasses say where the blocks are (``_containers() -> [(name, container)]``), what the paper's defaults are
    (``scale_defaults``) and which norms a file may lack or have besides.
    """

    host: str  # name of the dialect of the host, see checkpoint.dialects
    scale_defaults: dict[str, Any] = dict(
        times=2, layers='all', sources=None, adjust=ADJUST, start='paper', growth=None, new_layers=None
    )
    alternating = 1  # period of the blocks, see LayerMap.live

    @classmethod
    def _read_scale(cls, scale: dict | None, frozen_stages: int) -> dict[str, Any]:
        """The ``scale`` dict with the paper's defaults filled in; ``growth`` as a ``Growth`` or None.

        Raises:
            ValueError: for an unknown key, keys that exclude each other, or if ``frozen_stages`` is used.
        """
        if frozen_stages != -1:
            raise ValueError(
                f'frozen_stages={frozen_stages} would freeze the norms and adapters of the scaled network as well; '
                "leave it out and choose what is trained with the config's policy = dict(train=...)."
            )
        if not isinstance(scale, (dict, type(None))):
            raise ValueError(f'scale must be a dict or None, got {scale!r}.')
        given = {k: v for k, v in (scale or {}).items() if v is not None or k == 'adjust'}
        if told := unknown(given, cls.scale_defaults):
            raise ValueError(f'scale has no key {told}; {cls.__name__} takes {sorted(cls.scale_defaults)}.')
        if given.get('growth') is None:
            if given.get('new_layers') is not None:
                raise ValueError(
                    f'scale has new_layers={given["new_layers"]}, which counts the independent layers of a growth; add '
                    "growth='stack' (or another), or use times or sources to share layers."
                )
            return {**cls.scale_defaults, **given}
        clash = sorted({'order', 'sources', 'start'} & set(given))
        clash += ['times'] if {'times', 'new_layers'} <= set(given) else []
        if clash:
            raise ValueError(
                f'scale has growth={given["growth"]!r} and {clash}; growth itself says where new layers lie and how '
                'they start, and takes new_layers=NUMBER or times=FACTOR. Leave the others out (in a child of a '
                'config that has them: scale=dict(_delete_=True, growth=...), on the command line '
                'model.backbone.scale._delete_=True).'
            )
        if given.get('times') == 1:
            raise ValueError(
                f'scale has growth={given["growth"]!r} and times=1, which adds nothing; write new_layers or times=2.'
            )
        grown = dict(given, growth=Growth.from_cfg(given['growth']))
        return {**cls.scale_defaults, 'adjust': None, **grown}

    @staticmethod
    def _placing(scale: dict[str, Any]) -> Callable[..., LayerMap]:
        """What makes a layer map of (depth, times, order, layers, sources)."""
        growth, new = scale['growth'], scale['new_layers']

        def build(depth: int, times: float, order: str, layers, sources) -> LayerMap:
            """As ``LayerMap.build``, but ``order`` and ``sources`` are the growth's own business."""
            return growth.layer_map(depth, None if times == 1 else new, times, layers)

        return LayerMap.build if growth is None else build

    @classmethod
    def _source_arch(cls, arch: str | dict) -> dict:
        """The pretrained network's ``arch`` as a dict, by the host's own rules."""
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_zoo:
                raise ValueError(f'arch must be one of {sorted(cls.arch_zoo)} or a dict, got {arch!r}.')
            return dict(cls.arch_zoo[arch.lower()])
        needed = sorted(next(iter(cls.arch_zoo.values())))
        lacking = sorted(set(needed) - set(arch)) if isinstance(arch, Mapping) else needed
        if lacking:
            raise ValueError(f'Custom arch needs a dict with keys {needed}, got {arch!r}, which lacks {lacking}.')
        return dict(arch)

    def _scale(self, maps: Sequence[LayerMap], scale: dict[str, Any], with_cp: bool, ops: str | Mapping | None) -> None:
        for (_, layers), layer_map in zip(self._containers(), maps):
            if scale['growth'] is None:
                tie(layers, layer_map)
            else:
                grow(layers, layer_map, scale['growth'], self.alternating)
            adjust_layers(layers, scale['adjust'], scale['adjust_on'], scale['start'], self.alternating)
        set_ops(self, ops)
        for _, layers in self._containers():
            for block in layers:
                block.checkpointed = with_cp
        self._be_strict()

    def _be_strict(self) -> None:
        """Called when the backbone is whole: files must fit it from here on."""
        self.built = frozenset(self.state_dict())
        self._register_state_dict_hook(store_layer_maps)
        self.register_load_state_dict_pre_hook(require_exact_keys)

    def only_added(self, keys: Iterable[str]) -> bool:
        """Whether they are of what was put on the backbone later (mmpretrain's LoRA), and of nothing else."""
        return set(keys) <= self.state_dict().keys() - self.built

    def layer_maps(self) -> dict[str, LayerMap]:
        """The layer map of every container of blocks, by the container's name."""
        return {name: layers.layer_map for name, layers in self._containers()}

    def optional_keys(self) -> tuple[set[str], set[str]]:
        """Keys that a file may lack, and keys that it may have besides: norms of outputs that differ by task."""
        return set(), set()

    def train(self, mode: bool = True):
        super().train(mode)
        return self  # the hosts' return None

    def eval(self):
        return self.train(False)

    def init_weights(self) -> None:
        """Initialises as the host does, then loads ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)``."""
        if self.is_init:
            print_log(f'{type(self).__name__}: initialised already; nothing is changed.', 'current', logging.WARNING)
            return
        init_cfg, (pretrained, drawn) = self.init_cfg, init_cfgs(self)
        self.init_cfg = drawn or None
        super().init_weights()
        self.init_cfg = init_cfg
        for cfg in pretrained:
            self.load_pretrained(cfg['checkpoint'], cfg.get('prefix'))

    def load_pretrained(self, checkpoint: str, prefix: str | None = None) -> None:
        """Loads a checkpoint file of any dialect, scaled or not, strictly.

        Args:
            checkpoint: path, ``http(s)://`` or ``hf://owner/repo/file``.
            prefix: where the backbone is in the file; found by itself when it is ``backbone``.

        Raises:
            CheckpointError: before anything is changed, if the file does not fit.
        """
        with naming(checkpoint):
            state_dict = unwrap(read_checkpoint(checkpoint))
            if prefix:
                state_dict = strip_prefix(state_dict, prefix.rstrip('.') + '.')
                if not state_dict:
                    raise CheckpointError(f'no key starts with {prefix!r}, which init_cfg names as the prefix.')
            own = self.own_names(state_dict)
            self.load_state_dict(split(state_dict)[0] if own is None else own)
        print_log(f'{type(self).__name__}: loaded {checkpoint}', 'current')

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        entries = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        if not entries:
            raise CheckpointError(
                f'The checkpoint has no key under {prefix!r}, where this model keeps its backbone. Write it as one of '
                'ours with: scalenet convert SOURCE DESTINATION'
            )
        if self.only_added(entries):
            return super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        for key in entries:
            del state_dict[prefix + key]
        if not any(isinstance(v, Tensor) for v in entries.values()):
            entries = unwrap(entries)
        entries = to_host(split(entries)[0] if not prefix else entries, self.host)
        self._check_stored(local_metadata, prefix)
        for name, layers in self._containers():
            expand(entries, f'{name}.', layers)
        require_values(self.state_dict(), entries)  # before sizes are adapted, which takes numbers
        self._adapt(entries)
        state_dict.update({prefix + k: v for k, v in entries.items()})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _check_stored(self, metadata: dict, prefix: str) -> None:
        """What scaled networks of the same keys and shapes may differ in: their maps, and what adapters compute."""
        stored = metadata.get('layer_maps', {})
        try:
            for name, layers in self._containers():
                check_stored_map(stored.get(name), layers.layer_map, prefix + name)
        except ValueError as e:
            raise CheckpointError(str(e)) from e
        theirs, mine = metadata.get('adjust'), self._adjust_kind()
        if theirs and theirs != mine:
            raise CheckpointError(
                f'The checkpoint was trained with adjustments of another kind: {theirs}, this model has {mine}; '
                'build it with the same scale=dict(adjust=...).'
            )

    def _adjust_kind(self) -> list[str]:
        found = {(type(m).__name__, getattr(m, 'act', '')) for m in self.modules() if isinstance(m, Adjustment)}
        return sorted(' '.join(kind).strip() for kind in found)

    def _adapt(self, entries: dict[str, Tensor]) -> None:
        """Completes a file's entries: what the architecture decides, and sizes the host's own hooks do not resize."""


def source_outputs(backbone: nn.Module) -> dict[str, list[int]]:
    """``out_indices`` of the unscaled network, where the backbone's count scaled layers and not stages."""
    containers, given = scaled_layers(backbone), getattr(backbone, 'out_indices', None)
    if len(containers) != 1 or given is None:
        return {}
    sources = containers[0][1].layer_map.sources
    return dict(out_indices=sorted({sources[i] for i in given}))


def store_layer_maps(backbone: ScaledBackbone, state_dict, prefix, local_metadata) -> None:
    local_metadata['adjust'] = backbone._adjust_kind()
    local_metadata['layer_maps'] = {n: list(m.sources) for n, m in backbone.layer_maps().items()}


def require_exact_keys(backbone: ScaledBackbone, state_dict, prefix, *args) -> None:
    """The last load pre-hook: refuses a file that does not fit before anything is changed."""
    expected = backbone.state_dict()
    got = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    if backbone.only_added(got):
        return
    may_miss, may_extra = backbone.optional_keys()
    require({k: v.shape for k, v in expected.items()}, got, (may_miss & set(expected)) | (may_extra & set(got)))
    missing, besides = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    state_dict.update({prefix + k: expected[k] for k in missing})
    for key in besides:
        del state_dict[prefix + key]
    for text, keys in (('keep their initial values (not in the file)', missing), ('are not used here', besides)):
        if keys:
            print_log(f'{type(backbone).__name__}: {keys} {text}.', 'current', logging.WARNING)
