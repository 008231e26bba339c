"""Zero-shot evaluation by lm-evaluation-harness, beside Table X's printed figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from ..tables import format_table

# The harness' name of each column of Table X, in its order.
TASKS = {
    'boolq': 'BoolQ',
    'piqa': 'PIQA',
    'hellaswag': 'HellaSwag',
    'winogrande': 'WinoGrande',
    'arc_easy': 'ARC-e',
    'arc_challenge': 'ARC-c',
    'openbookqa': 'OBQA',
}
PRINTED = {  # zero-shot, %
    'base': dict(zip(TASKS.values(), (63.98, 74.59, 63.66, 60.69, 60.48, 36.26, 37.20))),
    'ScaleNet': dict(zip(TASKS.values(), (66.12, 75.73, 64.98, 61.17, 60.82, 37.63, 36.80))),
}
METRICS = ('acc_norm', 'acc')  # the first that a task has; the paper does not say which


def known_tasks(tasks: Sequence[str], include_path: str | Path | None = None) -> Any:
    """The harness' index of tasks, after a check that it has all of these.

    Args:
        include_path: folder of further tasks, ``*.yaml``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: naming unknown tasks and the nearest known ones.
    """
    from lm_eval.tasks import TaskManager

    if include_path and not Path(include_path).is_dir():
        raise FileNotFoundError(f'There is no folder {include_path} of tasks (--include_path).')
    manager = TaskManager(include_path=str(include_path) if include_path else None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        near = {t: get_close_matches(t, manager.all_tasks, n=3) for t in unknown}
        raise ValueError(
            f'lm-evaluation-harness has no task {unknown}; nearest are {near}. Tasks of your own: --include_path '
            'FOLDER.'
            if unknown
            else 'Name at least one task.'
        )
    return manager


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str] = tuple(TASKS),
    limit: int | None = None,
    include_path: str | Path | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """Runs tasks zero-shot on the device that the model is on.

    Args:
        model: a causal language model in eval mode, scaled or not.
        limit: only the first records of each task, to try it.

    Returns:
        For each task its metrics as the harness gives them, shares and not percent: ``{'acc': 0.6, 'acc_stderr':
            ...}``; of a tag or a group for each of its tasks, and for the group itself where the harness sums it up.

    Raises:
        ValueError: for unknown tasks, before anything is run.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = known_tasks(tasks, include_path)
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(tasks),
        num_fewshot=0,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=100,  # for metrics whose error has no formula; 0 leaves out those that have one too
        log_samples=False,
    )['results']
    told = {
        task: {name.removesuffix(',none'): value for name, value in found.items() if isinstance(value, float)}
        for task, found in results.items()
    }
    asked = [task for task in tasks if task in told]
    return {task: told[task] for task in dict.fromkeys((*asked, *told)) if told[task]}


def table(results: Mapping[str, Mapping[str, float]], name: str = 'this model') -> str:
    """One column a task, in percent, the paper's two rows first; tasks that Table X lacks have '-' there."""
    chosen = {t: next((m for m in METRICS if m in found), None) for t, found in results.items()}
    printed = [
        (f'Llama-3.2-1B {row}, printed', *(_shown(about.get(TASKS.get(t))) for t in results))
        for row, about in PRINTED.items()
    ]
    ours = [_shown(100 * results[t][m] if m else None) for t, m in chosen.items()]
    head = ('zero-shot, %', *(TASKS.get(t, t) for t in results))
    metrics = ('metric', *(m or '-' for m in chosen.values()))
    return format_table(head, [*printed, (name, *ours), metrics])


def _shown(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'
