"""Evaluate a causal language model, scaled or not, zero-shot on the tasks of Table X by lm-evaluation-harness.

    scalenet lm-eval --model work_dirs/llama_x2
    scalenet lm-eval --model meta-llama/Llama-3.2-1B --tasks boolq,piqa --limit 100
    scalenet lm-eval --model DIR --tasks my_task --include_path my_tasks --json

The harness fetches its data sets itself. The paper's printed figures stand beside what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from .main import command_parser
from .numbers import at_least_one


def main(argv: Sequence[str]) -> int:
    from ..lm import require_extras
    from ..lm.evaluation import TASKS, evaluate, known_tasks, table

    p = command_parser(__doc__)
    p.add_argument('--model', required=True, help='folder or Hub name')
    p.add_argument('--increments', metavar='FILE', help='a delta that --model is the base of')
    p.add_argument('--tasks', default=','.join(TASKS), help=f'default: {",".join(TASKS)}')
    p.add_argument('--include_path', '--include-path', help='folder of further tasks (*.yaml)')
    p.add_argument('--limit', type=at_least_one, help='only the first N records of each task')
    p.add_argument('--batch-size', type=at_least_one, default=8)
    p.add_argument('--dtype', default='auto', choices=['auto', 'float32', 'bfloat16', 'float16'])
    p.add_argument('--device', help='default: the first GPU, else the CPU')
    p.add_argument('--json', action='store_true', help='print all metrics as JSON')
    args = p.parse_args(argv)
    require_extras()
    import torch

    from ..lm.saving import load_increments, load_parts

    tasks = [task.strip() for task in args.tasks.split(',') if task.strip()]
    known_tasks(tasks, args.include_path)  # like the tokenizer, looked at before the weights are loaded
    tokenizer, load = load_parts(args.model)
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    given = dict(base=args.model, dtype=args.dtype)
    model = load_increments(args.increments, **given) if args.increments else load(args.dtype)
    results = evaluate(model.to(device), tokenizer, tasks, args.limit, args.include_path, args.batch_size)
    print(json.dumps(results, indent=1) if args.json else table(results, args.model))
    if args.limit and not args.json:
        print(f'The first {args.limit} records of each task: not comparable with the printed figures.')
    return 0
