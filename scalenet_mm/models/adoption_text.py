"""A leaf config as text: what differs from the config that it inherits from, as a person would write it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

WIDTH = 120
ORDER = (
    'custom_imports',
    'runner_type',
    'model',
    'policy',
    'data_root',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'load_from',
)
NOTES = {'runner_type': 'exact resume, the check of load_from, and the policy', 'policy': 'what is trained'}


def difference(before: Mapping, after: Mapping) -> dict[str, Any]:
    """What ``after`` says that ``before`` does not, as mmengine merges it: dicts key by key, everything else whole.

    >>> difference(dict(a=1, b=dict(c=2, d=[3])), dict(a=1, b=dict(c=2, d=[4]), e=None))
    {'b': {'d': [4]}, 'e': None}
    """
    changed = {}
    for key, value in after.items():
        old = before.get(key)
        if key in before and type(old) is type(value) and old == value:
            continue
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = {'_delete_': True, **value} if set(old) - set(value) else difference(old, value)
            if not value:
                continue
        elif isinstance(value, Mapping) and key in before:
            value = {'_delete_': True, **value}  # mmengine merges a dict into nothing else
        changed[key] = value
    return changed


def without_scope(node: Any, scope: str) -> Any:
    """Without the ``_scope_`` that mmengine notes where a config inherits from another library's, if it is the own."""
    if isinstance(node, Mapping):
        return {k: without_scope(v, scope) for k, v in node.items() if (k, v) != ('_scope_', scope)}
    return [without_scope(v, scope) for v in node] if isinstance(node, list) else node


def leaf_text(base: Sequence[str], changed: Mapping[str, Any], where: str, merged: Collection[str] = ()) -> str:
    """The file's text.

    Args:
        base: the lines that inherit.
        changed: what the file says besides.
        where: the backbone's path, for the first line.
        merged: names that a config in pure Python has from its base, where they are changed instead of set.
    """
    rest = [key for key in changed if key not in ORDER and not key.startswith('_')]
    lines = [f'# {where} made deeper by layers that share its tensors (`scalenet init`)', *base]
    keys = [*(k for k in ORDER if k in changed), *rest]
    while keys:
        value, same = changed[keys[0]], keys[:1]
        if isinstance(value, dict) and keys[0] not in merged:
            same = [key for key in keys if changed[key] == value and key not in merged]
        head, tail = (f'{same[0]}.merge(', ')') if same[0] in merged else (f'{" = ".join(same)} = ', '')
        note = f'  # {NOTES[same[0]]}' if same[0] in NOTES else ''
        lines += statement(head, value, tail, note)
        keys = [key for key in keys if key not in same]
    return '\n'.join(lines) + '\n'


def statement(head: str, value: Any, tail: str = '', note: str = '') -> list[str]:
    """Head, value and tail, on more than one line only where they are too long for one."""
    line = f'{head}{literal(value)}{tail}{note}'
    if len(line) <= WIDTH or not isinstance(value, (dict, list)):
        return [line]
    lines = broken(head, value, tail)
    if len(lines[0] + note) > WIDTH:
        return [note.lstrip(), *lines]
    return [lines[0] + note, *lines[1:]]


def broken(head: str, value: dict | list, tail: str, indent: str = '') -> list[str]:
    """A dict or list on one line of its own; else with its last item opened on the first line, where that one alone
    holds others; else with an item a line.
    """
    opened, closed = ('[', ']') if isinstance(value, list) else ('dict(', ')') if _named(value) else ('{', '}')
    names = [''] * len(value) if isinstance(value, list) else [f'{k}=' if _named(value) else f'{k!r}: ' for k in value]
    items = list(zip(names, value if isinstance(value, list) else value.values()))
    lines, deeper, short = [f'{indent}{head}{opened}'], indent + '    ', False
    inner = deeper + ', '.join(f'{name}{literal(item)}' for name, item in items) + ','
    if len(items) > 1 and len(inner) <= WIDTH:
        return [*lines, inner, f'{indent}{closed}{tail}']
    if [bool(item) and isinstance(item, (dict, list)) for _, item in items] == [False] * (len(items) - 1) + [True]:
        (name, last), before = items[-1], ''.join(f'{name}{literal(item)}, ' for name, item in items[:-1])
        if len(items) == 1 or len(f'{indent}{head}{opened}{before}{name}dict(') <= WIDTH:
            return broken(f'{head}{opened}{before}{name}', last, f'{closed}{tail}', indent)
    for name, item in items:
        text, nested = f'{name}{literal(item)},', isinstance(item, (dict, list)) and bool(item)
        if nested and len(deeper + text) > WIDTH:
            lines += broken(name, item, ',', deeper)
        elif short and not nested and len(lines[-1] + text) < WIDTH:
            lines[-1] += f' {text}'
        else:
            lines.append(deeper + text)
        short = not nested
    return [*lines, f'{indent}{closed}{tail}']


def _named(value: Mapping) -> bool:
    return all(isinstance(key, str) and key.isidentifier() for key in value)


def literal(value: Any) -> str:
    """A value as it is written in a config.

    >>> literal(dict(type='A', size=(1, 2), keys={'a.b': None}))
    "dict(type='A', size=(1, 2), keys={'a.b': None})"
    """
    if isinstance(value, dict):
        if _named(value):
            return f'dict({", ".join(f"{k}={literal(v)}" for k, v in value.items())})'
        return '{' + ', '.join(f'{k!r}: {literal(v)}' for k, v in value.items()) + '}'
    if isinstance(value, list):
        return f'[{", ".join(map(literal, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(literal, value))}{"," * (len(value) == 1)})'
    if isinstance(value, float) and value in (float('inf'), float('-inf')):
        return f"float('{value}')"
    return repr(value)
