"""Whose class a config of a registered backbone is written for: that of mmpretrain, or that of mmdet and mmseg.

The same name may mean another thing in either (``norm_cfg``), or have another default (``out_indices``), so one set of
arguments is read as the one class's alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mmengine.registry import DefaultScope


class ArgumentsError(TypeError):
    """Arguments that no class takes, or no one class; the message says which and the way out."""

    told = True  # a command ends with the message, without a traceback


@dataclass(frozen=True)
class OtherClass:
    """A class of the same network in other libraries.

    Attributes:
        libraries: that have it.
        defaults: its arguments.
        example: arguments that only this class takes, for messages.
        read: what it was given, completed by ``defaults`` -> the host's ``arch`` and its other arguments.
    """

    libraries: tuple[str, ...]
    defaults: Mapping[str, Any]
    example: str
    read: Callable[[dict[str, Any]], tuple[dict, dict]]


def in_hosts_terms(ours: type, host: type, other: OtherClass, given: dict[str, Any]) -> tuple[str | dict, dict]:
    """The arguments of a backbone of ours in terms of its host.

    What only one class takes tells whose they are; where nothing does, the scope that the config is built in.

    Args:
        ours: the backbone, whose own arguments (``scale``, ``ops``, ...) are not among ``given``.
        host: mmpretrain's class that it extends.
        other: the class of the other libraries.
        given: the arguments, those that were left out left out.

    Returns:
        ``arch`` and the other arguments of ``host``.

    Raises:
        ArgumentsError: for one that nobody takes, naming the nearest, and for arguments of both classes.
        ValueError: if nothing tells the class, or a value is outside the class's rules.
    """
    hosts = arguments_of(host)
    if told := unknown(given, taken_by(ours, host, other)):
        raise ArgumentsError(f'{ours.__name__} got an unexpected keyword argument {told}.')
    by_host, by_other = set(given) - set(other.defaults), set(given) - set(hosts)
    libraries = ' and '.join(other.libraries)
    if by_host and by_other:
        raise ArgumentsError(
            f'{ours.__name__} reads its arguments as those of one class, and {sorted(by_host)} belong to '
            f"mmpretrain's {host.__name__}, {sorted(by_other)} to the one of {libraries}; leave out either."
        )
    if not by_host and not by_other:
        scope = DefaultScope.get_current_instance()
        name = None if scope is None else scope.scope_name
        if name not in ('mmpretrain', *other.libraries):
            raise ValueError(
                f'{ours.__name__} cannot tell whose defaults are meant: what is given, {sorted(given)}, fits '
                f"mmpretrain's {host.__name__} and the one of {libraries} alike. Write "
                f'arch={hosts["arch"]!r} for the first or {other.example} for the second, or build it in the '
                f'scope of its library (default_scope={other.libraries[0]!r}).'
            )
        by_other = name in other.libraries
    if by_other:
        return other.read({**other.defaults, **given})
    return given.pop('arch', hosts['arch']), given


def taken_by(ours: type, host: type, other: OtherClass) -> set[str]:
    """The names of all arguments that a backbone of ours takes."""
    return {*arguments_of(host), *other.defaults, *arguments_of(ours)} - {'host'}


def arguments_of(kind: type) -> dict[str, Any]:
    """The arguments of a class and their defaults."""
    return {name: p.default for name, p in inspect.signature(kind).parameters.items()}


def unknown(given: Iterable[str], known: Iterable[str]) -> str:
    """The names among ``given`` that are not known, and those that they may have meant; empty where there is none.

    >>> unknown(['depth', 'width'], ['depths', 'width'])
    "['depth'] (near are: depths)"
    """
    known = list(known)
    names = sorted(set(given) - set(known))
    return f'{names} (near are: {"; ".join(nearest(name, known) for name in names)})' if names else ''


def nearest(name: str, names: Iterable[str], cutoff: float = 0.3, most: int = 5) -> str:
    """What ``name`` may have meant, in one line."""
    return ', '.join(get_close_matches(name, list(names), n=most, cutoff=cutoff)) or 'none'


def per_source(cfgs: Any, sources: Sequence[int], depth: int, what: str) -> Any:
    """A list of one config for each pretrained layer as one for each instance; anything else as it is.

    >>> per_source(['a', 'b'], (0, 0, 1, 1), 2, 'layer_cfgs')
    ['a', 'a', 'b', 'b']

    Raises:
        ValueError: if the list has not one entry for each pretrained layer.
    """
    if not isinstance(cfgs, Sequence):
        return cfgs
    if len(cfgs) != depth:
        raise ValueError(f'{what} has {len(cfgs)} entries for {depth} pretrained layers; give one for each, or a dict.')
    return [cfgs[source] for source in sources]
