"""From a config file and options to the Config of a run, and to its Runner."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from ..checkpoint.delta_file import SUFFIX
from ..checkpoint.reading import read_checkpoint
from ..checkpoint.strict import naming
from ..compat import bare, init_cfgs, name_types, read_config, type_name
from ..core.roles import TrainPolicy
from ..cores import at_once
from ..engine.optim import FROM_CONFIG
from ..file_names import local_path, require_folder_name
from ..one_run import one_run
from .atomic import make_atomic
from .built import dicts
from .continuing import require_continuable, require_one_position, settle
from .resume import make_resumable
from .resumed_state import require_states
from .slips import refuse_misspelt_arguments, refuse_slips

CONSTRUCTOR, WRAPPER = 'ScaleNetOptimWrapperConstructor', 'ScaleNetDistributedDataParallel'


def load_config(path: str, work_dir: str | None = None, options: dict | None = None, launcher: str = 'none') -> Config:
    """Reads a config and applies what the command line says.

    Args:
        path: file, or ``mmdet::...`` and the like.
        work_dir: by default the config's, or ``work_dirs/<config name>``.
        options: settings that replace those of the config. ``data_root`` replaces the folder of the data everywhere in
            it.
        launcher: as mmengine's.

    Raises:
        SystemExit: if there is no such file or it is no config, a key or an argument is a slip, or it is not clear
            which folder ``data_root`` replaces.
    """
    try:
        cfg = read_config(path)
    except OSError as e:
        raise SystemExit(str(e)) from None
    cfg.launcher = launcher
    options = dict(options or {})
    for key in ('load_from', 'data_root', 'work_dir'):
        if options.get(key) == '':
            raise SystemExit(f'--cfg-options {key}= is empty: name a file or folder, or leave it out.')
        if isinstance(options.get(key), (int, float)):
            options[key] = str(options[key])  # a folder called 2024
    if 'data_root' in options:
        move_data_root(cfg, options['data_root'])
    refuse_slips(cfg, path, options)
    cfg.merge_from_dict(options)
    refuse_misspelt_arguments(cfg, path)
    try:
        trained_by(unwrap_overrides(cfg))  # refuses what contradicts itself before anything else is read
    except ValueError as e:
        raise SystemExit(str(e)) from None
    try:
        require_folder_name(cfg.get('work_dir') or '')
    except ValueError as e:
        raise SystemExit(f'work_dir: {e}') from None
    name = Path(path.rpartition('::')[2]).stem
    cfg.work_dir = str(Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / name).expanduser())
    return cfg


@RUNNERS.register_module()
class ScaleNetRunner(Runner):
    """mmengine's Runner for configs as ours are: plain data sets, and what is trained said once, at the top level.

    ``runner_type='ScaleNetRunner'`` makes mmdet's, mmseg's and mmpretrain's own tools take it.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> Runner:
        return super().from_cfg(complete_config(copy.deepcopy(cfg)))

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module.', ''),),
    ) -> Mapping[str, Any]:
        """As mmengine's, of a file that is read as every other is here: whole, and nothing in it is run.

        Raises:
            CheckpointError: naming the file, before the model is changed.
        """
        checkpoint = read_checkpoint(filename, map_location)
        if self._resume:
            require_continuable(self.cfg, filename, checkpoint)
            require_states(self, filename, checkpoint)
            checkpoint['meta'].pop('config', None)  # mmengine would run it, to see how many GPUs it names
        with naming(filename):
            self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
            checkpoint = _load_checkpoint_to_model(bare(self.model), checkpoint, strict, revise_keys=revise_keys)
        self._has_loaded = True
        self.logger.info(f'Loaded {filename}')
        return checkpoint

    def load_or_resume(self) -> None:
        """As mmengine's, and all processes begin at one position.

        Raises:
            CheckpointError: if they do not.
        """
        super().load_or_resume()
        if isinstance(self._train_loop, BaseLoop):
            require_one_position(all_gather_object((self.epoch, self.iter)))

    @staticmethod
    def build_dataloader(dataloader, seed: int | None = None, diff_rank_seed: bool = False):
        """As mmengine's, with no more workers than there are cores for: every sample has a seed of its own."""
        wanted = dataloader.get('num_workers', 0) if isinstance(dataloader, dict) else 0
        workers = at_once(wanted, int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
        if workers < wanted:
            print_log(f'A loader of {wanted} workers has {workers}: there is no core for more.', 'current')
            dataloader = {**dataloader, 'num_workers': workers}
        return Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def train(self):
        """As mmengine's, while no other run trains in the same work dir.

        Raises:
            SystemExit: if one does.
        """
        with one_run(self.work_dir):
            return super().train()


def complete_config(cfg: Config) -> Config:
    """Adds to a config, in place, what no list in a child config can drop then.

    The top-level ``policy`` goes to constructor and DDP wrapper, training gets exact resume, and a config of ours or
    with a scaled network files of any dialect in ``load_from``, of which an evaluation demands every tensor.
    Checkpoints are written whole, and it is settled which one a resumed run continues from. What a config says itself
    stays; a second call changes nothing.
    """
    share_policy(unwrap_overrides(name_types(cfg)))
    hooks = list(cfg.get('custom_hooks') or [])
    training = cfg.get('optim_wrapper') or {}
    ours = type_name(cfg.get('runner_type')) == ScaleNetRunner.__name__
    ours = ours or type_name(training.get('constructor')) == CONSTRUCTOR or _has_scaled(cfg)
    if ours and 'AnyDialectHook' not in (type_name(hook) for hook in hooks):
        cfg.custom_hooks = [dict(type='AnyDialectHook'), *hooks]
    if cfg.get('train_dataloader'):
        make_resumable(cfg)
        make_atomic(cfg)
        settle(cfg)
    return cfg


def unwrap_overrides(cfg: Config) -> Config:
    """Moves what a child of a 0.1.0 config says of the data set inside the wrapper, in place, to where it is now."""
    for key in ('dataset', 'sampler'):
        outer = (cfg.get('train_dataloader') or {}).get(key) or {}
        inner = outer.get(key) if hasattr(outer, 'get') else None
        if isinstance(inner, dict) and 'type' not in inner:
            cfg.merge_from_dict({f'train_dataloader.{key}': outer.pop(key)})
    return cfg


def share_policy(cfg: Config) -> dict:
    """Writes the top-level ``policy`` into the constructor's and the DDP wrapper's settings, in place.

    Returns:
        The policy; empty if the config has none, or nothing to train.

    Raises:
        ValueError: if the policy is none, another constructor would train everything, or the constructor's own
            policy differs or asks for one that is not there.
    """
    policy, training, wrapper = (cfg.get(key) or {} for key in ('policy', 'optim_wrapper', 'model_wrapper_cfg'))
    known = _is_policy(policy) or type_name(cfg.get('runner_type')) == ScaleNetRunner.__name__
    if not training or not (known or _has_scaled(cfg)):
        return {}  # a `policy` that is another project's
    paramwise = training.get('paramwise_cfg') or {}
    nested = paramwise.get('policy', FROM_CONFIG)
    ours = type_name(training.get('constructor')) == CONSTRUCTOR
    if ours and not policy and 'policy' in paramwise and nested == FROM_CONFIG:
        raise ValueError(
            'The config has no policy, though its optim_wrapper.paramwise_cfg refers to one; say what is trained: '
            "policy = dict(train='increments') or dict(train='all')."
        )
    if not policy:
        return {}
    TrainPolicy.from_cfg(policy)  # refuses what it does not know
    constructor = training.setdefault('constructor', CONSTRUCTOR)
    if type_name(constructor) != CONSTRUCTOR:
        raise ValueError(
            f'The config has policy={dict(policy)}, but its optim_wrapper has constructor={type_name(constructor)!r}, '
            'which knows of none and would train everything; leave the constructor out, or set policy=None.'
        )
    if nested not in (FROM_CONFIG, policy) and wrapper.get('policy', policy) == policy:
        raise ValueError(
            f'optim_wrapper.paramwise_cfg.policy is {nested}, the top-level policy {dict(policy)}, which is used for '
            'both it and model_wrapper_cfg; change the top-level one (policy.train, policy.also).'
        )
    training['paramwise_cfg'] = {**paramwise, 'policy': dict(policy)}
    if type_name(wrapper) in (None, WRAPPER):
        unused = {'find_unused_parameters': True} if cfg.get('find_unused_parameters') else {}
        cfg.model_wrapper_cfg = {**unused, **wrapper, 'type': WRAPPER, 'policy': dict(policy)}
    return policy


def _is_policy(given: Any) -> bool:
    return isinstance(given, dict) and bool(set(given) & set(TrainPolicy.__dataclass_fields__))


def _has_scaled(cfg: Config) -> bool:
    model = walk(cfg.get('model') or {})
    return any(path[-1] == 'type' and (type_name(value) or '').startswith('ScaleNet') for path, value in model)


def trained_by(cfg: Config) -> TrainPolicy:
    """What a run of this config trains; increments where it says nothing of training."""
    cfg = copy.deepcopy(cfg)
    share_policy(cfg)
    training = cfg.get('optim_wrapper')
    if not training:
        return TrainPolicy.from_cfg(cfg.policy if _is_policy(cfg.get('policy')) else None)
    if type_name(training.get('constructor')) != CONSTRUCTOR:
        return TrainPolicy('all')  # nobody freezes anything
    return TrainPolicy.from_cfg((training.get('paramwise_cfg') or {}).get('policy'))


def move_data_root(cfg: Config, root: str, option: str = '--cfg-options data_root') -> None:
    """Replaces the folder of the data in every string of a config that begins with it, in place.

    The old folder is the config's top-level ``data_root`` if a data set uses it, or else the one that all of them name.

    Raises:
        SystemExit: if the data sets name several, or none.
    """
    top = (cfg.get('data_root') or '').rstrip('/')
    roots = [(k, v) for k, v in walk(cfg) if k[-1] == 'data_root' and len(k) > 1 and isinstance(v, str) and v]
    of_loaders = {value for key, value in roots if str(key[0]).endswith('_dataloader')}  # others may be read by none
    named = of_loaders or {value for _, value in roots}
    old = {value.rstrip('/') for value in named}
    old = {top} if top in old or not old else old
    if old == {''} or len(old) != 1:
        raise SystemExit(
            f'{option}={root} replaces the one data_root of a config; this one has '
            f'{sorted(named) or "none"}. Set them one by one, e.g. train_dataloader.dataset.data_root={root}'
        )
    old = old.pop().rstrip('/')
    for key, value in list(walk(cfg)):
        if isinstance(value, str) and f'{value}/'.startswith(f'{old}/'):
            _put(cfg, key, root.rstrip('/') + value[len(old) :])


def _put(node: Any, path: tuple, value: Any) -> Any:
    """The node with another value at a path: in place, but for tuples, which are made anew."""
    if not path:
        return value
    inner = _put(node[path[0]], path[1:], value)
    if isinstance(node, tuple):
        return (*node[: path[0]], inner, *node[path[0] + 1 :])
    if inner is not node[path[0]]:
        node[path[0]] = inner
    return node


def walk(node, path: tuple = ()):
    """Every value below a config that is no dict, list or tuple, with its path of keys and indices."""
    items = node.items() if hasattr(node, 'items') else enumerate(node)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from walk(value, (*path, key))
        else:
            yield (*path, key), value


def reads_annotations(step: dict) -> bool:
    """Whether a step of a pipeline reads what is to be predicted."""
    return type_name(step).startswith('Load') and 'Annotation' in type_name(step)


def reads_pixels(step: dict) -> bool:
    """Whether a step of a pipeline reads the image."""
    return type_name(step).startswith('Load') and not reads_annotations(step)


def innermost(dataset: dict) -> dict:
    """The config of the data set inside wrappers, which say nothing of pipeline and classes."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def build_runner(cfg: Config) -> Runner:
    """The Runner that the config names, or ours."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else ScaleNetRunner.from_cfg(cfg)


def write_deltas(cfg: Config, load_from: str | None) -> None:
    """Adds `DeltaHook`, in place, where increments of something pretrained are trained.

    Args:
        load_from: what the run starts from. One that is resumed goes on with its deltas even if this is not said again.

    Raises:
        SystemExit: if they could not be written.
    """
    parts = cfg.model, cfg.model.get('backbone', {})
    base = load_from or any(init_cfgs(part)[0] or part.get('pretrained') for part in parts)
    resumed = cfg.get('resume') and cfg.get('load_from')
    if resumed and '://' not in resumed:
        base = base or any(local_path(resumed).parent.glob(f'*{SUFFIX}'))
    hooks = list(cfg.get('custom_hooks') or [])
    there = 'DeltaHook' in (type_name(hook) for hook in hooks)
    if base and trained_by(cfg).train != 'all' and not there:
        if find_spec('safetensors') is None:
            raise SystemExit(
                'This run trains increments, which are written as .delta.safetensors beside its checkpoints, and '
                'safetensors is not installed: pip install safetensors.'
            )
        cfg.custom_hooks = [*hooks, dict(type='DeltaHook')]


def draw_predictions(cfg: Config, show: bool, folder: str | None, wait: float) -> None:
    """Lets the visualization hook of mmdet, mmseg or mmpretrain show predictions or draw them into a folder, in place.

    Raises:
        SystemExit: if the config has no such hook, or the folder is one of the test data.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if not hook:
        raise SystemExit('--show and --show-dir need default_hooks.visualization in the config.')
    on, out = {
        'DetVisualizationHook': ('draw', 'test_out_dir'),
        'SegVisualizationHook': ('draw', None),
        'VisualizationHook': ('enable', 'out_dir'),
    }.get(type_name(hook), (None, None))
    if on is None:
        raise SystemExit(
            f'--show and --show-dir do not know the hook {type_name(hook)}; set its options with --cfg-options.'
        )
    if folder and (of_data := next((d for d in _image_folders(cfg) if Path(folder).resolve().is_relative_to(d)), None)):
        raise SystemExit(
            f'--show-dir {folder} lies in {of_data}, whose images would be written over by drawings of their names; '
            'name another folder.'
        )
    hook.update({on: True, 'interval': 1})
    if show:
        hook.update(show=True, wait_time=wait)
    if folder and out:
        hook[out] = str(Path(folder).absolute())
    elif folder:
        cfg.visualizer.save_dir = str(Path(folder).absolute())


def _image_folders(cfg: Config) -> Iterator[Path]:
    """Folders that the data sets of the test name for images."""
    for _, dataset in dicts(cfg.get('test_dataloader') or {}):
        prefix = dataset.get('data_prefix') or dataset.get('split') or ()
        for part in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
            if isinstance(part, str) and part and '://' not in f'{dataset.get("data_root")}{part}':
                yield Path(dataset.get('data_root') or '', part).expanduser().resolve()


def use_tta(cfg: Config) -> None:
    """Evaluates with the config's ``tta_model`` and ``tta_pipeline``, in place.

    Raises:
        SystemExit: if the config has none.
    """
    if not {'tta_model', 'tta_pipeline'} <= set(cfg):
        raise SystemExit('--tta needs tta_model and tta_pipeline in the config.')
    innermost(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)
