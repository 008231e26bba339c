"""What the two OpenMMLab families (upstream and the maintained `onedl-*`) need to work alike.

`patch()` runs when `scalenet_mm` is imported. A config file's `_base_` is resolved before its
`custom_imports`, so `_base_ = 'scalenet_mm::...'` asks for an earlier `import scalenet_mm`: our tools
do that, `scalenet run` does it for any other tool, and so does an import inside the
value of `_base_`, which mmengine evaluates first (docs/interop.md).
"""

import argparse
import io
import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from .file_names import local_path

PREFIX = 'scalenet_mm::'
PACKAGE = Path(__file__).resolve().parent
TYPE_KEYS = ('type', 'constructor', 'runner_type')  # of a config: what is built
OF_OFFICIAL_FILES = ('argparse.Namespace', 'yacs.config.CfgNode')  # DeiT's and Swin's: arguments, configs
DATA_CONFIGS = ('.json', '.yaml', '.yml')  # mmengine's, besides Python
LIBRARIES = ('mmpretrain', 'mmdet', 'mmseg')


def patch() -> None:
    """Makes `_base_` inheritance and resuming work in either family; may run any number of times.

    Does nothing where mmengine is absent.
    """
    if find_spec('mmengine') is None:
        return
    _skip_multimodal()
    _name_the_distributions()
    _resolve_own_configs()
    _allow_own_checkpoints()


def _skip_multimodal() -> None:
    """mmpretrain's multimodal models are written for transformers 4: with 5 beside it, `import mmpretrain.models`
    fails.

    Its own switch leaves them out; whoever asks for one of them is told what to install. Runs before mmpretrain's
    models are imported, so `import scalenet_mm` has to come first where transformers 5 is installed.
    """
    try:
        major = int(distribution('transformers').version.partition('.')[0])
        from mmpretrain.utils import dependency
    except (PackageNotFoundError, ImportError):
        return
    if major >= 5:
        dependency.WITH_MULTIMODAL = False


def _name_the_distributions() -> None:
    """mmengine looks `mmseg::` up as `mmsegmentation`, which the maintained family is not called."""
    from mmengine.config import utils

    for module, name in list(utils.MODULE2PACKAGE.items()):
        if module == name or find_spec(module) is None:
            continue
        try:
            distribution(name)
        except PackageNotFoundError:
            utils.MODULE2PACKAGE[module] = module  # then mmengine finds the module itself
    utils.MODULE2PACKAGE['scalenet_mm'] = 'scalenet_mm'


def configs_dir() -> Path:
    """The folder that `scalenet_mm::` stands for: the installed copy, or that of a checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    candidates = PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs'
    for path in candidates:
        if path.is_dir():
            return path
    raise FileNotFoundError(
        f'`{PREFIX}` needs the configs beside the code, but neither {candidates[0]} nor '
        f'{candidates[1]} is there; install scalenet_mm again with `pip install -e .`'
    )


def own_config(name: str) -> Path:
    """Path of the config that `scalenet_mm::name` means.

    Raises:
        FileNotFoundError: there is no such config; the message names the nearest.
    """
    path = configs_dir() / name.removeprefix(PREFIX)
    if path.is_file():
        return path
    near = _nearest_config(name.removeprefix(PREFIX), configs_dir())
    raise FileNotFoundError(
        f'`{PREFIX}{path.name}` is no config of ours ({path}); {near}, docs/model_zoo.md lists all.'
    )


def _nearest_config(name: str, folder: Path) -> str:
    there = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.py'))
    there = [p for p in there if p.startswith('_base_') == name.startswith('_base_')]
    spelt = {Path(p).name: p for p in reversed(there)} | {p: p for p in there}  # with and without their folder
    near = dict.fromkeys(spelt[p] for p in get_close_matches(name, spelt, n=8, cutoff=0.4))
    return f'the nearest of {len(there)} are {list(near) or there[-8:]}'


def read_config(config):
    """The mmengine `Config` of a file, of `package::name`, or a copy of a config.

    Raises:
        FileNotFoundError: there is no such file; the message lists those beside it.
        OSError: a file is no config.
    """
    from mmengine.config import Config

    if isinstance(config, Config):
        return name_types(deepcopy(config))  # Config.copy() would share the dicts below its top level
    if '::' in str(config):
        return name_types(Config.fromfile(Config._get_cfg_path(str(config), '')[0]))
    path = Path(config)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob('*.py')) if path.parent.is_dir() else []
        raise FileNotFoundError(f'There is no config {config}. In that folder: {", ".join(near) or "nothing"}.')
    if path.suffix != '.py':
        _require_settings(path)
    try:
        return name_types(Config.fromfile(path))
    except SyntaxError as error:
        raise OSError(f'{path} is no Python: {error.msg} (line {error.lineno}).') from error


def _require_settings(path: Path) -> None:
    from mmengine.fileio import load

    if path.suffix not in DATA_CONFIGS:
        raise OSError(f'{path} is no config; its name must end in .py, {" or ".join(DATA_CONFIGS)}.')
    try:
        settings = load(path)
    except Exception as error:  # each format has its own
        raise OSError(f'{path} cannot be read as {path.suffix[1:]}: {error}') from error
    if not isinstance(settings, dict):
        raise OSError(f'{path} is no config; it must hold settings by name, and holds a {type(settings).__name__}.')


def name_types(cfg):
    """Writes the imported classes of a pure-Python config by name, in place, as mmengine itself does when it dumps one.

    What is read and copied would be the class itself otherwise, which no dumped config and no delta can hold.
    """
    from mmengine.config.lazy import LazyAttr, LazyObject

    def write(node) -> None:
        if isinstance(node, dict):
            for key, value in dict.items(node):  # whose own items() would import
                if key in TYPE_KEYS and isinstance(value, (LazyAttr, LazyObject)):
                    dict.__setitem__(node, key, f'{value.module}.{value}')
                write(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                write(value)

    write(cfg._cfg_dict)
    return cfg


def with_preprocessor(model: Mapping, cfg: Mapping) -> dict:
    """A model's config with the preprocessor that the Runner would hand it from the top level of ``cfg``."""
    given = cfg.get('data_preprocessor')
    return dict(model) if given is None else {'data_preprocessor': given, **model}


@contextmanager
def built_as_written() -> Iterator[None]:
    """A type or an argument that is not there was written in a config: a command tells it without a traceback."""
    try:
        yield
    except (KeyError, TypeError) as error:
        if re.search(r'is not in the .* registry|unexpected keyword argument|missing \d+ required', str(error)):
            error.told = True
        raise


def _resolve_own_configs() -> None:
    """mmengine wants a folder in `package::folder/config.py` and a name known to pip; ours are flat.

    They get no scope of their own: a type in them is looked up from the config's `default_scope`.
    """
    from mmengine.config import Config

    host = Config._get_cfg_path
    if getattr(host, 'knows_scalenet_mm', False):
        return

    @cache
    def packaged(cfg_path: str) -> tuple[str, str | None]:  # each time the host reads all model lists of the package
        return host(cfg_path, '')

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return str(own_config(cfg_path)), None
        if '::' not in cfg_path:
            return host(cfg_path, filename)
        try:
            return packaged(cfg_path)
        except (AssertionError, ImportError, OSError, ValueError) as error:
            raise FileNotFoundError(_no_packaged_config(cfg_path)) from error

    get_cfg_path.knows_scalenet_mm = True
    Config._get_cfg_path = staticmethod(get_cfg_path)


def _no_packaged_config(name: str) -> str:
    from mmengine.config.utils import MODULE2PACKAGE

    package, _, config = name.partition('::')
    there = [module for module in MODULE2PACKAGE if find_spec(module)]
    if package not in there:
        return f'There is no config {name}: of {package!r} nothing is installed; write one of {there} before the ::.'
    folder = Path(find_spec(package).origin).parent / '.mim' / 'configs'
    return f'There is no config {name}; {_nearest_config(config, folder)}.'


def allowed_globals() -> list[tuple[Any, str]]:
    """What a file may name besides tensors, as `torch.serialization.safe_globals` takes it.

    Runner files hold log histories (numpy arrays in HistoryBuffers), official DeiT files their
    arguments, official Swin files a yacs config, which is read as a plain dict.
    """
    import numpy as np
    from mmengine.logging import HistoryBuffer

    def statistics_method(owner: type, name: str) -> Callable:
        # stands for `getattr`, which would open every door
        if owner is not HistoryBuffer or name.startswith('_'):
            raise UnpicklingError(f'GLOBAL getattr({owner}, {name!r}) is not allowed')
        return getattr(owner, name)

    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All']}
    return [
        (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (statistics_method, 'builtins.getattr'),
        (slice, 'builtins.slice'),
        (argparse.Namespace, 'argparse.Namespace'),
        (OrderedDict, 'yacs.config.CfgNode'),
        (np.ndarray, 'numpy.ndarray'),
        (np.dtype, 'numpy.dtype'),
        *((kind, f'{kind.__module__}.{kind.__qualname__}') for kind in dtypes),
        *((reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
        *((scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    ]


def _allow_own_checkpoints() -> None:
    """Since torch 2.6 a resume reads with `weights_only=True`, which must know what mmengine saves.

    Not what else official files name: that is allowed where we read them alone (`checkpoint.reading`). Entries carry
    their names, so a list that mmengine adds and removes itself leaves ours alone.
    """
    import torch
    from mmengine.logging import HistoryBuffer

    if torch.__version__ >= (2, 6):  # before it, everything is read by default
        HistoryBuffer()  # fills the class's table of methods
        ours = [entry for entry in allowed_globals() if entry[1] not in OF_OFFICIAL_FILES]
        torch.serialization.add_safe_globals(ours)


@contextmanager
def quiet(level: str = 'ERROR', logger: logging.Logger | None = None) -> Iterator[None]:
    """A logger says nothing below ``level`` meanwhile; mmengine's if none is given: its lines are one a tensor."""
    from mmengine.logging import MMLogger

    logger, least = logger or MMLogger.get_current_instance(), logging.getLevelName(level)

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= least

    logger.addFilter(passes)  # logging.disable would stay in MMLogger's cache
    try:
        yield
    finally:
        logger.removeFilter(passes)


@contextmanager
def importing_libraries() -> Iterator[None]:
    """What they print meanwhile is no part of a command's output: it goes to standard error, but for the word that the
    maintained family's own data sets are not installed."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            if not line.startswith('Could not import OneDL'):
                print(line, file=sys.stderr)


def type_name(node) -> str | None:
    """The name of what a config builds, without scope: its ``type`` as a string, as a class, or the object itself."""
    kind = node.get('type') if isinstance(node, Mapping) else node
    if isinstance(kind, str):
        return kind.rpartition('.')[2]
    return kind if kind is None else getattr(kind, '__name__', type(kind).__name__)


def init_cfgs(module) -> tuple[list, list]:
    """A module's ``init_cfg``: the entries that read a file, and those that draw random weights."""
    given = getattr(module, 'init_cfg', None) or []
    given = [given] if isinstance(given, Mapping) else list(given)
    read = [cfg for cfg in given if type_name(cfg) in ('Pretrained', 'PretrainedInit')]
    return read, [cfg for cfg in given if cfg not in read]


def type_class(node: Mapping, registry, default=None) -> type | None:
    """The class that a config builds, its ``type`` given as a class or by name; None where the registry has none."""
    kind = node.get('type', default)
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:  # of the default scope, as where it is built
        return scoped.get(kind)


def scope_of(cfg: Mapping) -> str | None:
    """The config's ``default_scope``; where types are classes and need none, the library of its model's class."""
    from mmengine.registry import MODELS

    model = cfg.get('model') or {}
    if cfg.get('default_scope') or not model:
        return cfg.get('default_scope')
    packages = (kind.__module__.partition('.')[0] for kind in getattr(type_class(model, MODELS), '__mro__', ()))
    return next((package for package in packages if package in LIBRARIES), None)


def resumed_from(runner) -> str | None:
    """The checkpoint that a run continues from: the one that was named, or the last in its work dir."""
    from mmengine.runner import find_latest_checkpoint

    named = (runner._load_from or find_latest_checkpoint(runner.work_dir)) if runner._resume else None
    return named if '://' in (named or '').removeprefix('file://') else named and str(local_path(named))


def checkpoint_folder(work_dir: str | Path, out_dir: str | Path | None = None) -> Path:
    """Where a run's checkpoints are: mmengine makes a folder of the work dir's name in an ``out_dir``."""
    elsewhere = out_dir and str(out_dir) != str(work_dir)
    return Path(out_dir, Path(work_dir).name) if elsewhere else Path(work_dir)


def bare(model):
    """The model inside DDP, test-time augmentation and ``torch.compile``."""
    from mmengine.model import BaseTTAModel, is_model_wrapper

    while True:
        if is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        elif hasattr(model, '_orig_mod'):
            model = model._orig_mod
        else:
            return model
