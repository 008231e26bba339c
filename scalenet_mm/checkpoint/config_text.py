"""Configs as text inside checkpoints and deltas, read without running them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, TASK_UTILS, TRANSFORMS, Registry, registry
from torch import nn

from ..compat import LIBRARIES
from .strict import CheckpointError

NAME_IT = 'name the config file with --config (config=... in Python)'


def is_json(text: str) -> bool:
    """Whether a config is Hugging Face's."""
    return text.lstrip().startswith('{')


def parse_config(text: str, where: str) -> Config:
    """The config that mmengine's ``pretty_text`` wrote: assignments of literals and ``dict(...)``, nothing else.

    Args:
        where: the file that holds the text, for messages.

    Raises:
        CheckpointError: if the text is more than that; it would have to be run.
    """
    try:
        statements = ast.parse(text).body
        return Config({s.targets[0].id: _value(s.value) for s in statements})
    except (AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'the config inside {where} is no plain data ({error}), and nothing stored in a file is run; {NAME_IT}'
        ) from error


@contextmanager
def registered_only(where: str, built: Any, modules: Iterable[str], way_out: str = NAME_IT) -> Iterator[None]:
    """While something is built from a config that lies in a file: what it names is registered, and no other code runs.

    A registry of mmengine calls any function that a ``type`` names by its place (``os.system``), ``custom_imports``
    imports any module, and mmcv evaluates the name of a suppression (``nms``) as an expression. Named by their place,
    what is registered and classes of ``nn.Module`` are let through.

    Args:
        where: the file, for messages.
        built: the parts of the config that are built.
        modules: what else of it is imported: modules, the default scope.
        way_out: what a user can do about it besides importing a module beforehand.

    Raises:
        CheckpointError: if the config names anything else.
    """
    refused = [name for name in (*modules, *_scopes(built)) if not _is_known(name)]
    host = registry.get_object_from_string

    def registered(name: str) -> Any:
        there = host(name) if _is_known(name) else None
        a_module = isinstance(there, type) and issubclass(there, nn.Module)  # torch.nn's are not all registered
        if not (there is None or a_module or there in _registered(MODELS, TASK_UTILS, TRANSFORMS)):
            refused.append(name)
            return None
        return there

    registry.get_object_from_string = registered
    try:
        if not refused:
            yield
    except (KeyError, RuntimeError):
        if not refused:
            raise
    finally:
        registry.get_object_from_string = host
    if refused:
        raise CheckpointError(
            f'the config inside {where} names {refused[0]!r}, which is no registered part of a library that is '
            f'imported, and nothing stored in a file is run; import the module that it belongs to, or {way_out}'
        )


def _is_known(name: str) -> bool:
    """Whether a dotted name begins with a module that is imported, or one of the libraries."""
    top = name.partition('.')[0]
    return '(' not in name and (top in sys.modules or top in (*LIBRARIES, 'mmengine', 'mmcv', 'scalenet_mm'))


FILES = ('checkpoint', 'pretrained')  # keys whose text is a path or an address: `swin (1).pth`


def _scopes(node: Any) -> Iterator[str]:
    """Types with dots, which are looked up where they say, and strings that could be calls, within a config."""
    if isinstance(node, dict):
        kind = node.get('type')
        yield from [kind] if isinstance(kind, str) and '.' in kind else ()
        node = [v for k, v in node.items() if not (k in FILES and isinstance(v, str))]
    elif isinstance(node, str) and '(' in node:
        yield node
    if not isinstance(node, (str, int, float, type(None))):
        for value in node:
            yield from _scopes(value)


def _registered(*registries: Registry) -> Iterator[Any]:
    for one in registries:
        yield from one.module_dict.values()
        yield from _registered(*one.children.values())


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=args, keywords=keywords):
            given = {k: v for arg in args for k, v in dict(_value(arg)).items()}
            return {**given, **{k.arg: _value(k.value) for k in keywords}}
        case ast.Dict(keys=keys, values=values):
            return {_value(k): _value(v) for k, v in zip(keys, values)}
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Set(elts=items):
            return {_value(item) for item in items}
        case ast.Name(id='inf' | 'nan' as name):
            return float(name)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id='inf')):
            return -float('inf')
    return ast.literal_eval(node)
