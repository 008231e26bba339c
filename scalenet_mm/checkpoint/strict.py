"""The load as a set equation: what a module expects against what a file holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Size, Tensor

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


class StrictBackbone:
    """A backbone that reads files of every dialect by itself and refuses what does not fit (decision 4)."""

    scaled_host = True  # roles.py: norms in here are those of the scaled network

    def own_names(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The backbone of a library's file by the names of this module; None where the table of dialects knows them."""
        return None

    def load_pretrained(self, checkpoint: str, prefix: str | None = None) -> None:
        """Loads a checkpoint file, scaled or not, strictly."""
        raise NotImplementedError
