"""Mean, deviation and channel order inside the graph: pixels go in as an image reader gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from ..models.inference import as_batch, read_image

if TYPE_CHECKING:  # an optional dependency
    import onnx_ir as ir


KINDS = ('DetDataPreprocessor', 'SegDataPreProcessor', 'ClsDataPreprocessor')


def preprocessor_of(cfg: Config) -> dict[str, Any]:
    """What a config says of its ``data_preprocessor``, which mmpretrain's have beside the model."""
    return dict(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})


COLOUR = (200, 100, 50)  # red, green, blue


def gives_red_first(cfg: Config) -> bool:
    """Whether the images of a test pipeline have red first, as a picture of one colour comes out of it.

    Raises:
        ValueError: if it comes out as another colour, which no file can take as pixels.
    """
    loader = next((step for step in cfg.test_pipeline if 'channel_order' in step), {})
    read = COLOUR if loader.get('channel_order') == 'rgb' else COLOUR[::-1]  # what an array stands for
    picture = np.full((512, 512, 3), read, np.uint8)
    model = SimpleNamespace(cfg=cfg)
    image = as_batch(model, read_image(model, picture))['inputs'][0]
    seen = tuple(image.flatten(1).median(1).values.tolist())  # what is padded is less
    if seen not in (COLOUR, COLOUR[::-1]):
        raise ValueError(
            f'The test pipeline changes the values of pixels ({COLOUR} comes out as {seen}), and --with-preparation '
            'takes them as 8-bit colour: say mean and std in data_preprocessor and take the step that normalises out '
            'of the pipeline, or leave --with-preparation out.'
        )
    return seen == COLOUR


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
        given_red_first: the test pipeline's.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    blue_first: bool
    given_red_first: bool

    @classmethod
    def of(cls, cfg: Config) -> Preparation:
        """Of a config's ``data_preprocessor`` and its test pipeline."""
        said = preprocessor_of(cfg)
        if said.get('type', KINDS[0]).split('.')[-1] not in KINDS:
            raise ValueError(
                f'data_preprocessor is a {said["type"]}, and --with-preparation knows {", ".join(KINDS)}; leave it out.'
            )
        turned = any(said.get(key) for key in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
        mean, std = (None if said.get(key) is None else _of_three(said[key]) for key in ('mean', 'std'))
        red_first = gives_red_first(cfg)
        return cls(mean, std, turned == red_first, red_first)

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
