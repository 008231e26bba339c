"""The load as a set equation: what a module expects against what a file holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # what a file may hold of a weight
SHOWN = 10  # entries of each kind that a message prints; all are in `CheckpointError.differences`


@dataclass(frozen=True)
class Differences:
    """What separates a file from a module; empty (and false) when they match.

    Attributes:
        missing: Shape of every key that the module expects and the file lacks.
        unexpected: Shape of every key that the file holds and the module does not know.
        mis_shaped: `(expected, got)` of every key whose shape differs.
    """

    missing: dict[str, Size] = field(default_factory=dict)
    unexpected: dict[str, Size] = field(default_factory=dict)
    mis_shaped: dict[str, tuple[Size, Size]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mis_shaped)

    def __str__(self) -> str:
        kinds = {
            'missing in the file': [f'{key} {tuple(shape)}' for key, shape in self.missing.items()],
            'unexpected in the file': [f'{key} {tuple(shape)}' for key, shape in self.unexpected.items()],
            'of another shape': [
                f'{key}: expected {tuple(expected)}, the file has {tuple(got)}'
                for key, (expected, got) in self.mis_shaped.items()
            ],
        }
        lines = []
        for title, entries in kinds.items():
            lines += [f'{len(entries)} {title}:'] * bool(entries) + [f'  {entry}' for entry in entries[:SHOWN]]
            lines += [f'  ... and {len(entries) - SHOWN} more'] * (len(entries) > SHOWN)
        return '\n'.join(lines)


class CheckpointError(RuntimeError):
    """A file that cannot be used as it is; the message says why and what to do.

    Args:
        message: The rule, the value and the way out.
        differences: The complete lists behind a message that shows their beginning.
    """

    told = True  # a command ends with the message, without a traceback

    def __init__(self, message: str, differences: Differences | None = None) -> None:
        super().__init__(message)
        self.differences = differences or Differences()

    def __reduce__(self) -> tuple[Any, ...]:
        # an exception of a worker process reaches its parent whole
        return type(self), (str(self), self.differences)


def compare(expected: Mapping[str, Size], got: Mapping[str, Tensor], optional: Collection[str] = ()) -> Differences:
    """Compare keys and shapes.

    Args:
        expected: Shape of every key of the module.
        got: The tensors of the file.
        optional: Keys that may be missing or unexpected. Their shapes count all the same.
    """
    return Differences(
        missing={k: Size(s) for k, s in expected.items() if k not in got and k not in optional},
        unexpected={k: t.shape for k, t in got.items() if k not in expected and k not in optional},
        mis_shaped={k: (Size(s), got[k].shape) for k, s in expected.items() if k in got and got[k].shape != Size(s)},
    )


def require(
    expected: Mapping[str, Size],
    got: Mapping[str, Tensor],
    optional: Collection[str] = (),
    what: str = 'the backbone',
    where: str = 'the checkpoint',
) -> None:
    """Raise unless keys and shapes are equal; see `compare`.

    Raises:
        CheckpointError: With every difference in its attribute `differences`.
    """
    differences = compare(expected, got, optional)
    if differences:
        raise CheckpointError(
            f'{where} does not fit {what}, and nothing was loaded: every key must be there with '
            f'its shape, and no other.\n{differences}\n'
            'Check that the file belongs to this model (architecture, depth, window size, scale).',
            differences,
        )


def require_values(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], where: str = 'the checkpoint') -> None:
    """Raise unless every tensor of a file holds values that the model's tensor of its name can take.

    A weight takes finite floating-point numbers; a tensor of integers takes what it can hold exactly.

    Args:
        expected: The model's tensors, of which the types count; other names of the file are not looked at.
        got: The tensors of the file.

    Raises:
        CheckpointError: With the name of each and what it holds instead.
    """
    wrong = {k: why for k, t in got.items() if k in expected and (why := _unfit(expected[k], t))}
    if wrong:
        lines = [f'  {key}: {why}' for key, why in list(wrong.items())[:SHOWN]]
        lines += [f'  ... and {len(wrong) - SHOWN} more'] * (len(wrong) > SHOWN)
        raise CheckpointError(
            f'{where} holds values that are no weights of this model, and nothing was loaded; weights are finite '
            'floating-point numbers:\n' + '\n'.join(lines) + '\n'
            'Take the file before it was quantised or converted, an earlier checkpoint of a run that diverged, or '
            'fetch the file again if it is damaged.'
        )


def _unfit(expected: Tensor, got: Tensor) -> str | None:
    """What a file's tensor holds instead of values for the model's."""
    dtype = expected.dtype
    if got.is_meta:
        return None if expected.is_meta else 'no values (it was saved on the meta device)'
    if got.layout != torch.strided:
        return f'a tensor of layout {got.layout}'
    if got.data_ptr() == expected.data_ptr():
        return None  # the model's own value, where a file has none
    if not dtype.is_floating_point:
        exact = got.dtype == dtype or (not got.is_quantized and torch.equal(got.to(dtype).to(got.dtype), got))
        return None if exact else f'{got.dtype} values that are no {dtype}'
    if got.dtype not in WEIGHTS:
        return f'{got.dtype} values'
    values = got.detach().to(dtype)
    if values.sum().isfinite():  # one pass; a sum of NaN or infinity is one
        return None
    lost = values.numel() - int(values.isfinite().sum())
    return f'NaN or infinity in {lost} of {values.numel()} values' if lost else None


@contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Puts the name of the file before what is wrong with it."""
    try:
        yield
    except (CheckpointError, ValueError) as error:
        if str(file) in str(error):
            raise
        raise CheckpointError(f'{file}: {error}', getattr(error, 'differences', None)) from error


class StrictBackbone:
    """A backbone that reads files of every dialect by itself and refuses what does not fit."""

    scaled_host = True  # roles.py: norms in here are those of the scaled network

    def own_names(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The backbone of a library's file by the names of this module; None where the table of dialects knows them."""
        return None

    def load_pretrained(self, checkpoint: str, prefix: str | None = None) -> None:
        """Loads a checkpoint file, scaled or not, strictly."""
        raise NotImplementedError
