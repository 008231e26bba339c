"""Models of Hugging Face's transformers as ``save_pretrained`` wrote them: their files are checked like every other.

``from_pretrained`` takes NaN as it is, draws what its files lack and warns, and of most damage names no file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.flops import meta_parameters
from .reading import read_checkpoint, unwrap
from .strict import CheckpointError, Differences, naming, require, require_values

WHERE = ('revision', 'subfolder', 'cache_dir', 'token', 'local_files_only')  # arguments that say where files are


def weight_files(name: str | Path, **where: Any) -> dict[Path, set[str]]:
    """The files of a folder or Hub name that ``from_pretrained`` takes, each with the keys that an index says it has.

    There are none where it has only other libraries' files.

    Raises:
        CheckpointError: if an index cannot be read.
        OSError: if a file that it lists is not there.
    """
    from transformers.utils import cached_file

    for file in ('model.safetensors', 'pytorch_model.bin'):
        whole, index = (
            cached_file(name, f, _raise_exceptions_for_missing_entries=False, **where)
            for f in (file, f'{file}.index.json')
        )
        if whole:
            return {Path(whole): set()}
        if index:
            with naming(index):
                shards = json.loads(Path(index).read_text()).get('weight_map', {})
            return {
                Path(cached_file(name, shard, **where)): {key for key, its in shards.items() if its == shard}
                for shard in sorted(set(shards.values()))
            }
    return {}


def empty_model(model_class: Any, config: Any, **kwargs: Any) -> nn.Module:
    """A model of a config, its parameters without storage; what its constructor computes is real."""
    make = getattr(model_class, '_from_config', None) or model_class.from_config  # the latter of Auto classes
    with meta_parameters():
        return make(config, **kwargs)


def require_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Raises CheckpointError unless each tensor that ``from_pretrained`` would take has its shape and type of values.

    It takes names with and without the prefix of the base model, and some of a file's may have no place.
    """
    own, prefix = model.state_dict(), f'{model.base_model_prefix}.'
    inside, around = ({f(k): t for k, t in own.items()} for f in (lambda k: k.removeprefix(prefix), prefix.__add__))
    expected = {k: t for k, t in {**inside, **around, **own}.items() if k in state}
    require({k: t.shape for k, t in expected.items()}, state, optional=state, what=type(model).__name__)
    require_values(expected, state)


def require_source(model_class: Any, name: str | Path, **kwargs: Any) -> list[Path]:
    """Reads the files of an unscaled model one by one, and holds none.

    Args:
        model_class: that is going to load it.
        kwargs: of its ``from_pretrained``.

    Returns:
        The files.

    Raises:
        CheckpointError: naming the file that is damaged or holds what is no weight of the model.
    """
    from transformers import AutoConfig

    where = {k: v for k, v in kwargs.items() if k in WHERE}
    trusted = {k: v for k, v in kwargs.items() if k == 'trust_remote_code'}
    read = getattr(model_class, 'config_class', None) or AutoConfig
    config = read.from_pretrained(name, **where, **trusted)
    files = weight_files(name, **where)
    quantised = getattr(config, 'quantization_config', None)  # then its quantiser says what a weight is
    model = None if quantised else empty_model(model_class, config, **trusted)
    for file, listed in files.items():
        with naming(file):
            state = unwrap(read_checkpoint(file))
            if lost := sorted(listed - state.keys()):  # from_pretrained believes the index
                raise CheckpointError(f'its index lists {", ".join(lost[:5])}, missing in the file; fetch both again.')
            if model is not None:
                require_weights(model, state)
    return list(files)


def load_source(model_class: Any, name: str | Path, **kwargs: Any) -> nn.Module:
    """An unscaled model by its class's ``from_pretrained``, all of it from files.

    Raises:
        CheckpointError: as ``require_source``, and if its files lack a tensor.
    """
    files = require_source(model_class, name, **kwargs)
    model, told = model_class.from_pretrained(name, output_loading_info=True, **kwargs)
    shapes = {k: t.shape for k, t in model.state_dict().items()}
    lacks = Differences(missing={k: shapes[k] for k in sorted(told['missing_keys'])})
    if lacks:
        raise CheckpointError(
            f'{files[0] if len(files) == 1 else name} must supply every tensor of {type(model).__name__}; what it '
            f'lacks would stay frozen at random values.\n{lacks}\nFetch the model again, or save it whole with '
            'save_pretrained; a head that is to be trained anew is added by the from_pretrained of its own class, and '
            'that model is scaled.',
            lacks,
        )
    return model
