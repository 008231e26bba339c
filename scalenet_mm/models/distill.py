"""Distillation from the source model, the paper's future work: losses beside those of a classifier's head."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn

from ..backbones.scaled import UNSCALED, ScaledBackbone, source_outputs
from ..checkpoint.strict import CheckpointError
from ..core.kept import declare_constant
from ..core.layer_map import LayerMap
from ..core.layers import watched
from ..core.tying import scaled_layers
from .build import load


@dataclass(frozen=True)
class Distillation:
    """What is learned from the teacher.

    Attributes:
        checkpoint: the teacher's file: path, ``http(s)://`` or ``hf://owner/repo/file``, of any dialect.
        logits: weight of the loss on logits.
        temperature: of the softmax of both networks in it.
        layers: weight of the loss on matching layers.
        model: config of the teacher (a classifier); by default the student's own with the backbone unscaled.
    """

    checkpoint: str
    logits: float = 1.0
    temperature: float = 1.0
    layers: float = 0.0
    model: Mapping[str, Any] | None = None

    def __post_init__(self):
        if not isinstance(self.checkpoint, str) or not self.checkpoint:
            raise ValueError(f"distill.checkpoint must name the teacher's file, got {self.checkpoint!r}.")
        for name in ('logits', 'temperature', 'layers'):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ValueError(f'distill.{name} must be a finite number >= 0, got {value!r}.')
        if self.temperature == 0:
            raise ValueError('distill.temperature divides the logits and must be > 0, got 0.')
        if self.logits == self.layers == 0:
            raise ValueError(
                'distill.logits and distill.layers are both 0, so nothing would be distilled; give one of them a '
                "weight, or use type='ImageClassifier' without distill."
            )
        if not isinstance(self.model, (Mapping, type(None))):
            raise ValueError(f'distill.model must be the config of a classifier (a dict), got {self.model!r}.')

    @classmethod
    def from_cfg(cls, cfg: Mapping | None) -> Distillation:
        """Reads ``distill=dict(checkpoint=..., logits=1.0, temperature=1.0, layers=0.0, model=None)``."""
        takes = list(cls.__dataclass_fields__)
        if not isinstance(cfg, Mapping) or 'checkpoint' not in cfg:
            raise ValueError(
                f'distill must be a dict with a checkpoint, got {cfg!r}; it takes {takes}. Without a teacher, use '
                "type='ImageClassifier' without distill."
            )
        unknown = sorted(set(cfg) - set(takes))
        if unknown:
            raise ValueError(f'distill has no key {unknown}; it takes {takes}.')
        return cls(**cfg)


class Teacher:
    """A frozen classifier that is no module of the student: in none of its parameters, wrappers and optimizers.

    It is built and read at first use. Copies and pickles hold its config only, and read the file if they need it.

    Args:
        model: config of a classifier.
        checkpoint: its file.
    """

    def __init__(self, model: Mapping[str, Any], checkpoint: str):
        self.model, self.checkpoint = model, checkpoint
        self._network: nn.Module | None = None

    def __reduce__(self):
        return Teacher, (self.model, self.checkpoint)

    def network(self, like: Tensor) -> nn.Module:
        """The classifier, in eval mode, on the device and of the dtype of ``like``.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if it does not fit the teacher's config.
        """
        if self._network is None:
            self._network = self._load()
        mine = next(self._network.parameters())
        if (mine.device, mine.dtype) != (like.device, like.dtype):
            self._network.to(device=like.device, dtype=like.dtype)
        return self._network

    def _load(self) -> nn.Module:
        scope = DefaultScope.get_current_instance()
        scope = 'mmpretrain' if scope is None else scope.scope_name
        try:
            with torch.random.fork_rng(devices=[]):  # the student draws as if there were no teacher
                cfg = dict(model=copy.deepcopy(self.model), default_scope=scope)
                net = load(cfg, self.checkpoint)
        except FileNotFoundError as e:
            raise FileNotFoundError(
                f"distill.checkpoint: {e}. Give the teacher's file with --cfg-options model.distill.checkpoint=FILE."
            ) from e
        except (CheckpointError, ValueError, AssertionError) as e:  # hosts assert
            raise CheckpointError(
                f'The teacher cannot be made from distill.checkpoint={self.checkpoint}: {e}\nThe teacher is '
                'distill.model, and if that is left out the student with its backbone unscaled; give the config that '
                'the file was trained with in distill.model.',
                getattr(e, 'differences', None),
            ) from e
        print_log(f'DistilledClassifier: the teacher is {self.checkpoint}', 'current')
        for p in net.requires_grad_(False).parameters():
            declare_constant(p)
        return net  # in eval mode, as `load` returns it


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` with losses against the source model; in evaluation nothing but that.

    ``loss_distill_logits`` is ``logits * logit_loss(...)`` and ``loss_distill_layers`` is ``layers * layer_loss(...)``.

    Args:
        backbone: of the student.
        distill: ``dict(checkpoint=..., logits=1.0, temperature=1.0, layers=0.0, model=None)``, see ``Distillation``.
        classifier: the host's other arguments.

    Raises:
        ValueError: for a ``distill`` outside its rules, naming rule, value and way out.
    """

    def __init__(self, backbone: dict, *, distill: dict, **classifier):
        distill = Distillation.from_cfg(distill)
        given = copy.deepcopy(dict(classifier, backbone=backbone))  # hosts write into their configs
        super().__init__(backbone, **classifier)
        self.distill = distill
        self.teacher = Teacher(distill.model or source_config(given, self.backbone), distill.checkpoint)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """The head's losses and those of the distillation.

        Args:
            inputs: (B, 3, H, W), as the data preprocessor (mixup, cutmix) made them; the teacher sees the same.

        Raises:
            ValueError: if layers or classes of student and teacher do not match.
        """
        teacher, wanted = self.teacher.network(next(self.parameters())), self.distill
        pairs = matching_blocks(self, teacher) if wanted.layers else ([], [])
        mine: list[Tensor] = []  # the blocks run one after the other
        theirs: list[Tensor] = []
        with watched(pairs[0], lambda _, out: mine.append(out)):
            feats = self.extract_feat(inputs)
        losses = self.head.loss(feats, data_samples)
        with torch.no_grad(), watched(pairs[1], lambda _, out: theirs.append(out)):
            target = teacher.extract_feat(inputs)
            if wanted.logits:
                target = teacher.head(target)
        if wanted.logits:
            loss = logit_loss(self.head(feats), target, wanted.temperature)
            losses['loss_distill_logits'] = wanted.logits * loss
        if wanted.layers:
            losses['loss_distill_layers'] = wanted.layers * layer_loss(mine, theirs)
        return losses


def source_config(classifier: Mapping[str, Any], backbone: nn.Module) -> dict[str, Any]:
    """The config of the source model: that of a scaled classifier, with its ``backbone`` unscaled.

    Raises:
        ValueError: if the classifier is not scaled, or was given modules instead of their configs.
    """
    parts = {k: classifier.get(k) for k in ('backbone', 'neck', 'head')}
    made = [k for k, v in parts.items() if isinstance(v, nn.Module)]
    if made or not isinstance(backbone, ScaledBackbone):
        why = f'{made} are modules, no configs' if made else f'a {type(backbone).__name__} has none'
        raise ValueError(
            f'The teacher is by default the source model of the scaled backbone, but {why}; give the config of the '
            'teacher in distill.model.'
        )
    scale = {**UNSCALED, **({'stages': 'all'} if 'stages' in backbone.scale_defaults else {})}
    outputs = source_outputs(backbone) if 'out_indices' in parts['backbone'] else {}
    source = dict(parts['backbone'], scale=scale, init_cfg=None, **outputs)  # its weights are the student's
    return dict(parts, type='mmpretrain.ImageClassifier', backbone=source)


def matching_instances(layer_map: LayerMap) -> tuple[int, ...]:
    """The instance whose output is compared with source layer s, for every s: relatively as deep as s.

    With interpolated layers it is the last instance of s. In any other order it is the instance that would be if the
    same instances were interpolated, so that deeper layers match deeper ones and the last one matches the last one.

    >>> matching_instances(LayerMap.build(3, 2, 'interpolate'))
    (1, 3, 5)
    >>> matching_instances(LayerMap.build(3, 2, 'stack'))
    (1, 3, 5)
    >>> matching_instances(LayerMap((0, 0, 0, 1, 2)))
    (2, 3, 4)
    """
    return tuple(sum(i <= s for i in layer_map.sources) - 1 for s in range(layer_map.depth))


def matching_blocks(student: nn.Module, teacher: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The blocks of both whose outputs are compared, pair by pair, from the first to the last.

    Raises:
        ValueError: unless both have the same containers of the same numbers of source layers.
    """
    mine, theirs = (dict(scaled_layers(net.backbone)) for net in (student, teacher))
    depths, wanted = ({k: v.layer_map.depth for k, v in found.items()} for found in (theirs, mine))
    if not wanted or depths != wanted:
        raise ValueError(
            f'distill.layers compares the source layers of the student, {wanted}, with those of the teacher, {depths}, '
            'which must be as many. Let distill.model be the source model (a ScaleNetDeiT or ScaleNetSwin with '
            f'scale={UNSCALED}), or set distill.layers=0.'
        )
    return tuple(
        [layers[i] for layers in found.values() for i in matching_instances(layers.layer_map)]
        for found in (mine, theirs)
    )


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) over the last axis, mean over all others (arXiv 1503.02531).

    Args:
        student: (B, C) or (B, ..., C) logits.
        teacher: of the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    _require_same_shape('logits', student, teacher)
    q, p = (F.log_softmax(_wide(x) / temperature, -1) for x in (student, teacher))
    return temperature**2 * (p.exp() * (p - q)).sum(-1).mean()


def layer_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of normalised tokens, mean over the layers: 0 for equal ones, 2 for unrelated ones.

    A token is normalised to mean 0 and variance 1 over its channels, as the norm at the head of the next block does.

    Args:
        student: outputs (B, L, C), one a layer.
        teacher: of the same shapes.

    Raises:
        ValueError: if shapes differ.
    """
    distances = []
    for mine, theirs in zip(student, teacher, strict=True):
        _require_same_shape('outputs of matching layers', mine, theirs)
        a, b = (F.layer_norm(_wide(x), x.shape[-1:]) for x in (mine, theirs))
        distances.append(F.mse_loss(a, b))
    return torch.stack(distances).mean()


def _wide(x: Tensor) -> Tensor:
    """At least float32: what autocast computed in half precision is compared in single."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _require_same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f'Distillation compares {what} of one shape, but the student has {tuple(student.shape)} and the teacher '
            f'{tuple(teacher.shape)}. The teacher must have the classes (and for distill.layers the tokens and '
            'channels) of the student: name a checkpoint of the same task in distill.checkpoint, and its config in '
            'distill.model.'
        )
