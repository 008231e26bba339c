"""Configs as text inside checkpoints and deltas, read without running them."""

from __future__ import annotations

import ast
from typing import Any

from mmengine.config import Config

from .strict import CheckpointError


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
            f'the config inside {where} is no plain data ({error}), and nothing stored in a file is run; '
            'name the config file with --config (config=... in Python)'
        ) from error


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
