"""From a config file and options to the Config of a run, and to its Runner."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..compat import read_config
from ..core.roles import TrainPolicy


def load_config(path: str, work_dir: str | None = None, options: dict | None = None, launcher: str = 'none') -> Config:
    """Reads a config and applies what the command line says.

    Args:
        path: file, or ``mmdet::...`` and the like.
        work_dir: by default the config's, or ``work_dirs/<config name>``.
        options: settings that replace those of the config. ``data_root`` replaces the folder of the data everywhere in
            it.
        launcher: as mmengine's.

    Raises:
        SystemExit: if there is no such file, or it is not clear which folder ``data_root`` replaces.
    """
    try:
        cfg = read_config(path)
    except FileNotFoundError as e:
        raise SystemExit(str(e)) from None
    cfg.launcher = launcher
    options = dict(options or {})
    if 'data_root' in options:
        move_data_root(cfg, options['data_root'])
    cfg.merge_from_dict(options)
    share_policy(cfg)
    name = Path(path.rpartition('::')[2]).stem
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    return cfg


def share_policy(cfg: Config) -> None:
    """Writes the top-level ``policy`` into the constructor's and the DDP wrapper's settings, in place.

    Raises:
        SystemExit: if nothing would apply it, or the constructor's own differs.
    """
    policy = cfg.get('policy')
    if not isinstance(policy, dict) or not set(policy) <= set(TrainPolicy.__dataclass_fields__):
        return
    training, wrapper = cfg.get('optim_wrapper') or {}, cfg.get('model_wrapper_cfg') or {}
    if training.get('constructor') != 'ScaleNetOptimWrapperConstructor':
        raise SystemExit(
            f'The config has policy={dict(policy)}, but its optim_wrapper would train everything; add '
            "constructor='ScaleNetOptimWrapperConstructor' to it, or set policy=None and model_wrapper_cfg=None."
        )
    nested = (training.get('paramwise_cfg') or {}).get('policy')
    if nested != policy and wrapper.get('policy') == policy:
        raise SystemExit(
            f'optim_wrapper.paramwise_cfg.policy is {nested}, the top-level policy {dict(policy)}, which is used for '
            'both it and model_wrapper_cfg; change the top-level one (policy.train, policy.also).'
        )
    cfg.merge_from_dict({'optim_wrapper.paramwise_cfg.policy': dict(_delete_=True, **policy)})
    ours = 'ScaleNetDistributedDataParallel'
    if wrapper.get('type', ours) == ours:
        cfg.model_wrapper_cfg = dict(wrapper, type=ours, policy=dict(policy))


def move_data_root(cfg: Config, root: str) -> None:
    """Replaces the folder of the data in every string of a config that begins with it, in place.

    The old folder is the config's top-level ``data_root`` if a data set uses it, or else the one that all of them name.

    Raises:
        SystemExit: if the data sets name several, or none.
    """
    top = (cfg.get('data_root') or '').rstrip('/')
    named = {
        value
        for key, value in walk(cfg)
        if key[-1] == 'data_root' and len(key) > 1 and isinstance(value, str) and value
    }
    old = {value.rstrip('/') for value in named}
    old = {top} if top in old or not old else old
    if old == {''} or len(old) != 1:
        raise SystemExit(
            f'--cfg-options data_root={root} replaces the one data_root of a config; this one has '
            f'{sorted(named) or "none"}. Set them one by one, e.g. train_dataloader.dataset.data_root={root}'
        )
    old = old.pop().rstrip('/')
    for key, value in list(walk(cfg)):
        if isinstance(value, str) and f'{value}/'.startswith(f'{old}/'):
            holder = cfg
            for part in key[:-1]:
                holder = holder[part]
            holder[key[-1]] = root.rstrip('/') + value[len(old) :]


def walk(node, path: tuple = ()):
    """Every value below a config that is no dict or list, with its path of keys and indices."""
    items = node.items() if hasattr(node, 'items') else enumerate(node)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from walk(value, (*path, key))
        else:
            yield (*path, key), value


def innermost(dataset: dict) -> dict:
    """The config of the data set inside wrappers, which say nothing of pipeline and classes."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def build_runner(cfg: Config) -> Runner:
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def write_deltas(cfg: Config) -> None:
    """Adds `DeltaHook`, in place, where increments of something pretrained are trained."""
    training = cfg.get('optim_wrapper') or {}
    policy = (training.get('paramwise_cfg') or {}).get('policy') or {}
    ours = training.get('constructor') == 'ScaleNetOptimWrapperConstructor'
    base = cfg.get('load_from') or cfg.model.get('backbone', {}).get('init_cfg')
    hooks = list(cfg.get('custom_hooks') or [])
    there = any(h.get('type') == 'DeltaHook' for h in hooks if isinstance(h, dict))
    if ours and base and policy.get('train') != 'all' and not there:
        cfg.custom_hooks = [*hooks, dict(type='DeltaHook')]


def draw_predictions(cfg: Config, show: bool, folder: str | None, wait: float) -> None:
    """Lets the visualization hook of mmdet, mmseg or mmpretrain show predictions or draw them into a folder, in place.

    Raises:
        SystemExit: if the config has no such hook.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if not hook:
        raise SystemExit('--show and --show-dir need default_hooks.visualization in the config.')
    on, out = {
        'DetVisualizationHook': ('draw', 'test_out_dir'),
        'SegVisualizationHook': ('draw', None),
        'VisualizationHook': ('enable', 'out_dir'),
    }.get(str(hook.type).rpartition('.')[2], (None, None))
    if on is None:
        raise SystemExit(f'--show and --show-dir do not know the hook {hook.type}; set its options with --cfg-options.')
    hook.update({on: True, 'interval': 1})
    if show:
        hook.update(show=True, wait_time=wait)
    if folder and out:
        hook[out] = str(Path(folder).absolute())
    elif folder:
        cfg.visualizer.save_dir = folder


def use_tta(cfg: Config) -> None:
    """Evaluates with the config's ``tta_model`` and ``tta_pipeline``, in place.

    Raises:
        SystemExit: if the config has none.
    """
    if not {'tta_model', 'tta_pipeline'} <= set(cfg):
        raise SystemExit('--tta needs tta_model and tta_pipeline in the config.')
    innermost(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)
