"""Mean, deviation and channel order inside the graph: pixels go in as an image reader gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from ..compat import type_name

if TYPE_CHECKING:  # an optional dependency
    import onnx_ir as ir


KINDS = ('DetDataPreprocessor', 'SegDataPreProcessor', 'ClsDataPreprocessor')


def preprocessor_of(cfg: Config) -> dict[str, Any]:
    """What a config says of its ``data_preprocessor``, which mmpretrain's have beside the model."""
    return dict(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})


def reads_rgb(steps: Sequence[dict]) -> bool:
    """Whether the loading step of a pipeline gives red first; mmcv's default is blue."""
    return any(step.get('channel_order') == 'rgb' for step in steps)


def sides_of(shape: Sequence[Any], pixels: bool) -> tuple:
    """(H, W) of an input's shape: of pixels (B, H, W, 3), or of prepared images (B, C, H, W)."""
    return tuple(shape[1:3] if pixels else shape[2:])


def _of_three(values: Sequence[float]) -> tuple[float, ...]:
    """For each channel, where one value may be for all."""
    return tuple(map(float, values)) * (3 if len(values) == 1 else 1)


@dataclass(frozen=True)
class Preparation:
    """From pixels (B, H, W, 3) uint8, red first, to what a model takes: (B, 3, H, W) float32.

    Attributes:
        mean, std: of the channels in the model's order; None for none.
        blue_first: the model's order.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    blue_first: bool

    @classmethod
    def of(cls, cfg: Config) -> Preparation:
        """Of a config's ``data_preprocessor`` and its test pipeline."""
        said = preprocessor_of(cfg)
        if said.get('type', KINDS[0]).split('.')[-1] not in KINDS:
            raise ValueError(
                f'data_preprocessor is a {said["type"]}, and --with-preparation knows {", ".join(KINDS)}; leave it out.'
            )
        if any(type_name(step) == 'Normalize' for step in cfg.test_pipeline):
            raise ValueError(
                "The test pipeline has a step of type 'Normalize', and --with-preparation puts what data_preprocessor "
                'says into the graph: give mean and std there and take the step out, or leave --with-preparation out.'
            )
        turned = any(said.get(key) for key in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
        mean, std = (None if said.get(key) is None else _of_three(said[key]) for key in ('mean', 'std'))
        return cls(mean, std, turned == reads_rgb(cfg.test_pipeline))

    def _constants(self) -> list[tuple[str, np.ndarray]]:
        """Operator of ONNX and its second input, in order."""
        named = (('Sub', self.mean), ('Div', self.std))
        return [(op, np.float32(values).reshape(1, 3, 1, 1)) for op, values in named if values is not None]

    def __call__(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float()
        x = x.flip(1) if self.blue_first else x
        for op, values in self._constants():
            x = {'Sub': torch.sub, 'Div': torch.div}[op](x, torch.from_numpy(values))
        return x

    def prepend(self, model: ir.Model) -> None:
        """Makes ``image`` of a graph these pixels."""
        import onnx_ir as ir

        graph = model.graph
        old = graph.inputs[0]
        batch, _, high, wide = old.shape
        pixels = ir.Value(name=old.name, shape=ir.Shape([batch, high, wide, 3]), type=ir.TensorType(ir.DataType.UINT8))
        nodes = [ir.node('Cast', [pixels], attributes=dict(to=ir.DataType.FLOAT))]

        def then(op: str, *values: tuple[str, np.ndarray], **attributes: Any) -> None:
            inputs = [nodes[-1].outputs[0]]
            for name, array in values:
                value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                graph.initializers[name] = value
                inputs.append(value)
            nodes.append(ir.node(op, inputs, attributes=attributes))

        then('Transpose', perm=[0, 3, 1, 2])
        if self.blue_first:
            then('Gather', ('channels', np.int64([2, 1, 0])), axis=1)
        for op, values in self._constants():
            then(op, (f'pixels_{op.lower()}', values))
        old.replace_all_uses_with(nodes[-1].outputs[0])
        graph.inputs[0] = pixels
        graph.insert_before(graph[0], nodes)
