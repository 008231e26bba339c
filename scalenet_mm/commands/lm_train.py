"""Scale a causal language model in depth and fine-tune it on an Alpaca-format file (Table X).

    scalenet lm-train --model meta-llama/Llama-3.2-1B --data alpaca_data.json --out work_dirs/llama_x2 --bf16
    scalenet lm-train ... --resume                # continues from the last checkpoint in --out
    scalenet lm-train ... --times 1 --adjust none --train all   # plain fine-tuning of the source

The paper says: all layers x2, adapters, Alpaca, 3 epochs. Rank, learning rate, batch and order are not stated; the
defaults are ours. DIR gets the model (each shared tensor once), its tokenizer and increments.delta.safetensors (trained
parameters alone).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..file_names import a_folder
from ..one_run import one_run
from .main import command_parser
from .numbers import above_zero, at_least_one, depth_factor, from_zero, seed


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    from ..core.adapters import ADAPTER_RANK
    from ..lm.alpaca import MAX_LENGTH
    from ..lm.training import Recipe

    p = command_parser(__doc__)
    usual = Recipe()
    p.add_argument('--model', required=True, help='folder or Hub name of the source model')
    p.add_argument('--data', required=True, help='JSON list of {instruction, input, output}')
    p.add_argument('--out', required=True, type=a_folder, metavar='DIR')
    p.add_argument('--times', type=depth_factor, default=2, help='depth factor (default 2)')
    p.add_argument('--order', choices=['interpolate', 'stack'], default='interpolate')
    p.add_argument('--rank', type=at_least_one, default=ADAPTER_RANK, help=f'of the adapters (default {ADAPTER_RANK})')
    p.add_argument('--adjust', choices=['adapter', 'lora', 'none'], default='adapter')
    p.add_argument('--start', choices=['paper', 'function'], default='paper')
    p.add_argument('--train', choices=['increments', 'adjustments', 'all'], default='increments')
    p.add_argument('--epochs', type=above_zero, default=usual.epochs, help='default 3, the paper')
    p.add_argument('--lr', type=above_zero, default=usual.lr, help=f'default {usual.lr:g}')
    p.add_argument('--batch-size', type=at_least_one, default=usual.batch_size, help='a step, all devices')
    p.add_argument('--micro-batch', type=at_least_one, default=usual.micro_batch, help='a device at once')
    p.add_argument('--max-length', type=at_least_one, default=MAX_LENGTH, help='tokens of a record')
    p.add_argument('--max-steps', type=at_least_one, default=-1, help='end earlier, to try it')
    p.add_argument('--save-steps', type=from_zero, default=0, help='between checkpoints; 0: one an epoch')
    p.add_argument('--seed', type=seed, default=0)
    p.add_argument('--bf16', action='store_true', help='frozen weights and autocast in bfloat16')
    p.add_argument('--gradient-checkpointing', action='store_true')
    p.add_argument(
        '--resume',
        nargs='?',
        const=True,
        metavar='CHECKPOINT',
        help='continue from the last checkpoint in --out, or from a given one',
    )
    args = p.parse_args(argv)
    if args.train != 'all' and args.times == 1 and args.adjust == 'none':
        p.error('--times 1 --adjust none leaves nothing new to train; add --train all.')
    return args


def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    from ..lm import require_extras

    require_extras('transformers', 'accelerate')
    from transformers import set_seed

    from .. import TrainPolicy, scale
    from ..checkpoint.pretrained import weight_files
    from ..core.adapters import parse_adjust
    from ..lm.alpaca import encode, read_alpaca
    from ..lm.saving import INCREMENTS, load_parts, save_increments
    from ..lm.training import RUN, Recipe, checkpoint_of, make_trainer, require_same_run, run_of, train, trainable_table

    # everything that can be wrong is looked at before the weights are loaded
    kind = dict(adapter='ParallelAdapter', lora='LoRA').get(args.adjust)
    adjust = dict(type=kind, rank=args.rank) if kind else None
    parse_adjust(adjust)
    recipe = Recipe(**{k: v for k, v in vars(args).items() if k in Recipe.__dataclass_fields__})
    recipe.arguments(args.out)
    if Path(args.model).is_dir() and Path(args.model).resolve() == args.out.resolve():
        raise ValueError(
            f'--out {args.out} is the folder of --model, whose weights the trained ones would replace; name another '
            '--out.'
        )
    checkpoint = checkpoint_of(args.out, args.resume)
    own = checkpoint and Path(checkpoint).resolve().parent == args.out.resolve()
    if not own and args.out.is_dir() and weight_files(args.out):
        raise ValueError(f'--out {args.out} holds a model, which the trained one would replace; name another --out.')
    records = read_alpaca(args.data)
    tokenizer, load = load_parts(args.model)
    examples = encode(records, tokenizer, args.max_length)
    cut = sum(len(e['input_ids']) == args.max_length for e in examples)
    print(
        f'{args.data}: {len(records)} records, {len(examples)} with room for a response, {cut} as long as '
        f'{args.max_length} tokens or cut there.'
    )
    model = load('bfloat16' if args.bf16 and args.train != 'all' else 'float32')
    run = run_of(recipe, args.train, examples, model)
    set_seed(args.seed)  # the adapters' first values
    if args.times != 1 or adjust:
        scale(model, times=args.times, order=args.order, adjust=adjust, start=args.start)
    setattr(model.config, RUN, run)
    if checkpoint:
        require_same_run(checkpoint, model.config)
    policy = TrainPolicy(args.train)
    with one_run(args.out):
        trainer = make_trainer(model, examples, args.out, recipe, policy, tokenizer)
        print(f'What is trained:\n{trainable_table(model)}')
        print('Stated in the paper: x2, Alpaca, 3 epochs. Chosen here: ' + repr(recipe), flush=True)
        train(trainer, checkpoint)
        trainer.save_model(str(args.out))
        if not trainer.is_world_process_zero():
            return 0
        print(f'wrote {args.out}')
        if args.train != 'all':
            delta = save_increments(model, args.model, args.out / INCREMENTS, policy)
            print(f'wrote {args.out / INCREMENTS}: {delta.nbytes / 1e6:.1f} MB on {args.model}')
        return 0
