"""Which axis of a layer's output holds its channels: hosts do not say it, the layer's own MLP does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..core.hosts import host_facts


@dataclass(frozen=True)
class Layout:
    """What a layer puts out.

    Attributes:
        channels: those that its MLP writes.
        attends: whether it has an attention: such hosts that keep maps put channels last, convolutions put them first.
    """

    channels: int
    attends: bool

    @classmethod
    def of(cls, layer: nn.Module) -> Layout:
        facts = host_facts(layer)
        return cls(layer.get_submodule(facts.paths('fc2')[0]).out_features, bool(facts.qkv))

    def channels_last(self, y: Tensor, images: Sequence[int], as_map: bool, host: object) -> Tensor:
        """(B, N, C), (B, H, W, C) or (B, C, H, W) -> (B, N, C) or (B, H, W, C).

        Args:
            y: what the layer put out.
            images: the shape of the images, (B, 3, height, width).
            as_map: whether H and W must be those of the image, up to the rounding of a stride.
            host: for messages.

        Raises:
            ValueError: if it is nothing of these.
        """
        samples, _, height, width = images
        last, first = y.shape[-1] == self.channels, y.ndim == 4 and y.shape[1] == self.channels
        moved = y.permute(0, 2, 3, 1) if first and not (last and self.attends) else y
        fits = moved.ndim in (3, 4) and (len(moved), moved.shape[-1]) == (samples, self.channels)
        if fits and as_map and moved.ndim == 4:
            h, w = moved.shape[1:3]
            fits = height * (w - 1) < width * (h + 1) and width * (h - 1) < height * (w + 1)
        if not fits:
            c = self.channels
            raise ValueError(
                f'A layer of {host!r} put out {tuple(y.shape)} for images {tuple(images)}: neither tokens ({samples}, '
                f'N, {c}) nor a map ({samples}, H, W, {c}) or ({samples}, {c}, H, W) of their shape, so this host cuts '
                "them up in its own way. Choose another host, out_type='avg_featmap' where only H and W do not fit, or "
                'scale the network itself with scalenet_mm.scale.'
            )
        return moved
