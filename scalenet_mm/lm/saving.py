"""Scaled language models as folders and as increments.

A folder is what ``save_pretrained`` writes: each shared tensor once, and a config that says the scaled depth and, under
``scalenet``, how it was scaled. The increments alone are a delta (``checkpoint.delta_file``) on the pretrained model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.flops import meta_parameters
from ..core.roles import TrainPolicy
from ..core.spread import expand
from ..core.tying import scaled_layers
from ..ops import rescale

INCREMENTS = 'increments.delta.safetensors'


def from_pretrained(folder: str | Path, model_class: Any = None, dtype: Any = 'auto', **kwargs: Any) -> nn.Module:
    """The model that ``save_pretrained`` wrote, scaled or not, in eval mode.

    >>> model = from_pretrained('work_dirs/llama_x2', dtype=torch.bfloat16)  # doctest: +SKIP

    Args:
        folder: of a scaled model, or a plain model's folder or Hub name.
        model_class: ``AutoModelForCausalLM`` by default, or a model's own class.
        dtype: of all weights, ``torch.bfloat16`` or ``'bfloat16'``; ``'auto'`` is the one in the config. What the
            files hold in a finer one is rounded, which is logged.
        kwargs: what the class takes beside the config, such as ``attn_implementation='sdpa'``.

    Raises:
        FileNotFoundError: if the folder of a scaled model has no weights.
        CheckpointError: naming the file that is damaged, or the folder whose weights and config do not fit.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from ..checkpoint.pretrained import empty_model, load_source, weight_files

    model_class = model_class or AutoModelForCausalLM
    config = AutoConfig.from_pretrained(folder)
    spec = getattr(config, 'scalenet', None)
    if spec is None:
        return load_source(model_class, folder, dtype=dtype, **kwargs).eval()
    files = list(weight_files(folder))
    if not files:
        raise FileNotFoundError(
            f'{folder} has a config but no model*.safetensors; save the model there with save_pretrained.'
        )
    dtype = (config.dtype or torch.float32) if dtype == 'auto' else dtype
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    with meta_parameters():  # tied and adjusted while the weights have no storage
        model = rescale(empty_model(model_class, config, dtype=dtype, **kwargs), spec)
    _load(model, files, dtype)
    if model.can_generate():
        with suppress(OSError):  # a folder may have none
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def load_parts(name: str | Path) -> tuple[Any, Callable[[Any], nn.Module]]:
    """The tokenizer, and what loads the weights for a dtype; config and tokenizer are read first, as they are small.

    Raises:
        ValueError: if one of them is not there.
    """
    from transformers import AutoConfig, AutoTokenizer

    for part, kind in (('config', AutoConfig), ('tokenizer', AutoTokenizer)):
        try:
            read = kind.from_pretrained(name)
            if kind is AutoTokenizer and (not read or len(read) <= len(read.all_special_ids)):
                raise ValueError('What is there gives no vocabulary.')
        except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(
                f'{name} gives no {part}: name a folder that save_pretrained wrote, or a model of the Hub that this '
                f'machine may fetch (hf auth login, for gated ones such as Llama). {error}'
            ) from error
    return read, lambda dtype: from_pretrained(name, dtype=dtype)


def _load(model: nn.Module, files: list[Path], dtype: torch.dtype) -> None:
    from ..checkpoint.delta_file import tell_rounded
    from ..checkpoint.reading import read_checkpoint, unwrap
    from ..checkpoint.strict import naming, require, require_values

    state: dict[str, torch.Tensor] = {}
    stored: set[torch.dtype] = set()
    for file in files:
        for name, tensor in unwrap(read_checkpoint(file)).items():
            floating = tensor.is_floating_point()
            state[name] = tensor.to(dtype) if floating else tensor
            stored |= {tensor.dtype} if floating else set()
    tell_rounded('the files', {(found, dtype) for found in stored}, "; dtype='float32' (--dtype float32) keeps them")
    by_tensor = {id(t): name for name, t in model.state_dict(keep_vars=True).items() if name in state}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in state and id(tensor) in by_tensor:  # an output layer tied to the embedding
            state[name] = state[by_tensor[id(tensor)]]
    expected = model.state_dict()
    with naming(files[0] if len(files) == 1 else files[0].parent):
        require({k: t.shape for k, t in expected.items()}, state, what='the model of its config')
        require_values(expected, state)
    model.load_state_dict(state, assign=True)
    model.tie_weights()


def save_increments(model: nn.Module, base: str, path: str | Path, policy: TrainPolicy = TrainPolicy()) -> Any:
    """Writes what the policy trains, alone: adapters and norms of a scaled model whose other weights are its source's.

    Args:
        base: the source model's Hub name or folder; read once more here, and kept as a name.
        path: of the ``.delta.safetensors``.

    Returns:
        The ``Delta``.

    Raises:
        CheckpointError: if a tensor outside the policy is not the source's, before anything is written.
    """
    from ..checkpoint.assemble import make_delta
    from ..checkpoint.delta_file import digests

    state = model.state_dict(keep_vars=True)
    named = {id(state[name]) for name in policy.trainable(model)}
    trained = {name for name, t in state.items() if id(t) in named}  # with an output layer tied to the embedding
    state = {name: t.detach() for name, t in state.items()}
    found = digests(state)
    kept = {name: digest for name, digest in found.items() if name not in trained}
    dtype = next((t.dtype for name, t in state.items() if name in kept and t.is_floating_point()), model.dtype)
    _require_source(kept, model, base, dtype)
    # in the config, save_pretrained sets the dtype of the first parameter
    config = json.loads(model.config.to_json_string()) | dict(dtype=str(dtype).removeprefix('torch.'))
    delta = make_delta(state, trained, model, str(base), json.dumps(config, indent=2, sort_keys=True), found=found)
    delta.save(path)
    return delta


def _require_source(kept: dict[str, str], model: nn.Module, base: str, dtype: torch.dtype) -> None:
    """Raises CheckpointError unless the tensors with these digests are what ``base`` supplies."""
    from ..checkpoint.delta_file import digests
    from ..checkpoint.strict import CheckpointError

    known = type(model).from_pretrained(base, dtype=dtype).state_dict()
    for name, layers in scaled_layers(model):
        expand(known, f'{name}.', layers)
    theirs = digests(known)
    lost = [name for name, digest in kept.items() if theirs.get(name) != digest]
    if lost:
        mine, shapes = model.state_dict(), {k: tuple(v.shape) for k, v in known.items()}
        told = [f'{k} {tuple(mine[k].shape)}, there {shapes.get(k, "missing")}' for k in lost[:5]]
        raise CheckpointError(
            f'Increments are put on {base} as it is, but {len(lost)} tensors that they do not hold are not what it '
            f'has: {"; ".join(told)}. Were they trained, add them to the policy (TrainPolicy(also=[...])). Were the '
            'embeddings resized, resize and save the source first, and name that folder as the base. '
            'model.save_pretrained(...) keeps everything.'
        )


def load_increments(
    path: str | Path, base: str | Path | None = None, model_class: Any = None, dtype: Any = 'auto', **kwargs: Any
) -> nn.Module:
    """Source model + increments: the scaled model, in eval mode.

    Args:
        path: what ``checkpoint.delta_file.read_delta`` takes.
        base: the source model's folder or Hub name; by default the one in the file.
        dtype: of all weights; ``'auto'`` is the source's, in which increments trained in a finer one are rounded.
        kwargs: of the class's ``from_pretrained``.

    Raises:
        CheckpointError: if the file is damaged, or this is not the model that it was trained on.
    """
    from transformers import AutoModelForCausalLM

    from ..checkpoint.config_text import is_json
    from ..checkpoint.delta_file import put, read_delta
    from ..checkpoint.live_delta import scale_by_delta
    from ..checkpoint.pretrained import require_source
    from ..checkpoint.strict import CheckpointError

    delta, model_class = read_delta(path), model_class or AutoModelForCausalLM
    if not is_json(delta.config):
        raise CheckpointError(f'{path} is a delta of {delta.base}, no language model: scalenet delta info tells more.')
    require_source(model_class, base or delta.base, **kwargs)
    model = model_class.from_pretrained(base or delta.base, dtype=json.loads(delta.config).get('dtype'), **kwargs)
    scale_by_delta(model, delta)
    if dtype != 'auto':
        model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        put(model, delta.tensors)  # again, as they are
    return model.eval()
