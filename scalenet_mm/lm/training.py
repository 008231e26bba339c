"""Fine-tuning by Hugging Face's own Trainer; what is trained is ``roles.TrainPolicy``'s business.

The paper says of Table X: all layers x2, Alpaca, 3 epochs. Everything else in ``Recipe`` is chosen here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.digests import digests, fingerprint
from ..core.roles import TrainPolicy, role_rows
from ..progress import Progress
from ..tables import format_table
from .alpaca import pad

WRITTEN_LAST = 'trainer_state.json'  # of a checkpoint of the Trainer
RUN = 'scalenet_run'  # of the model's config: what `run_of` gives


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        epochs: the paper's 3.
        lr: of AdamW; not stated, ours is that of the paper's ImageNet recipe. Decays to 0 by a cosine.
        batch_size: sequences a step on all devices together; not stated, ours is Stanford Alpaca's.
        micro_batch: sequences a device takes at once; the rest is accumulated.
        warmup: share of the steps in which the rate rises; not stated, Stanford Alpaca's.
        weight_decay: not stated; none.
        clip: norm that gradients are clipped to; not stated, the Trainer's default.
        max_steps: ends training earlier; -1 for whole epochs.
        bf16: autocast to bfloat16; what is trained stays in float32.
        gradient_checkpointing: computes activations again in the backward pass instead of keeping them.
        save_steps: steps between checkpoints, 0 for one an epoch, None for none.
        keep: checkpoints that are kept.
        seed: of the order of the data and of drop-out.
    """

    epochs: float = 3
    lr: float = 2e-4
    batch_size: int = 128
    micro_batch: int = 8
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    max_steps: int = -1
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: int | None = 0
    keep: int = 2
    seed: int = 0

    def __post_init__(self):
        for name in ('epochs', 'lr', 'batch_size', 'micro_batch'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name} must be above 0, got {getattr(self, name)!r}.')
        if not 0 <= self.warmup < 1:
            raise ValueError(f'warmup is a share of the steps, 0 <= warmup < 1, got {self.warmup}.')

    def arguments(self, out: str | Path) -> Any:
        """The Trainer's arguments, for the processes and devices of this run.

        Raises:
            ValueError: if the batch cannot be split into micro-batches on these devices.
        """
        from transformers import TrainingArguments

        # Since transformers 5 warmup_steps below 1 are a share of the steps.
        share = 'warmup_ratio' if hasattr(TrainingArguments, 'warmup_ratio') else 'warmup_steps'
        saving = {0: 'epoch', None: 'no'}.get(self.save_steps, 'steps')
        made = TrainingArguments(
            output_dir=str(out),
            num_train_epochs=self.epochs,
            max_steps=self.max_steps,
            learning_rate=self.lr,
            lr_scheduler_type='cosine',
            **{share: self.warmup},
            weight_decay=self.weight_decay,
            max_grad_norm=self.clip,
            per_device_train_batch_size=min(self.micro_batch, self.batch_size),
            bf16=self.bf16,
            save_strategy=saving,
            save_steps=self.save_steps or 500,
            save_total_limit=self.keep,
            seed=self.seed,
            remove_unused_columns=False,
            disable_tqdm=True,
            logging_strategy='steps',
            logging_steps=1,
            report_to='none',
            use_cpu=not torch.cuda.is_available(),
        )
        at_once = made.train_batch_size * made.world_size
        if self.batch_size % at_once:
            raise ValueError(
                f'batch_size must be a multiple of micro_batch x devices, got {self.batch_size} and '
                f'{made.per_device_train_batch_size} x {at_once // made.per_device_train_batch_size}; choose '
                f'batch_size={max(1, self.batch_size // at_once) * at_once} or another micro_batch.'
            )
        made.gradient_accumulation_steps = self.batch_size // at_once
        return made


def make_trainer(
    model: nn.Module,
    examples: Sequence[Mapping[str, Sequence[int]]],
    out: str | Path,
    recipe: Recipe = Recipe(),
    policy: TrainPolicy = TrainPolicy(),
    tokenizer: Any = None,
) -> Any:
    """Freezes by policy and gives Hugging Face's Trainer, whose optimizer gets the trainable parameters alone.

    >>> make_trainer(model, encode(records, tokenizer), 'out').train(resume_from_checkpoint=True)  # doctest: +SKIP

    Args:
        model: a causal language model, scaled or not; trained parameters stored in half precision become float32.
        examples: what ``alpaca.encode`` gives.
        out: folder of the checkpoints, which hold each shared tensor once; the Trainer resumes from them.
        tokenizer: saved beside the weights; its pad token fills batches.

    Raises:
        ValueError: if policy or recipe do not fit the model or the machine.
    """
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    args = recipe.arguments(out)
    trainable = set(policy.trainable(model))
    if not trainable:
        raise ValueError(
            f'train={policy.train!r} trains adjustments, and this model has none: add some (adjust, --adjust), train '
            "'all', or name parameters (also)."
        )
    to_full_precision(model, trainable, recipe.bf16)
    policy.apply(model)
    if recipe.gradient_checkpointing:
        enable = getattr(model, 'activation_checkpointing_enable', None)
        (enable or model.gradient_checkpointing_enable)(dict(use_reentrant=False))
    padding = getattr(tokenizer, 'pad_token_id', None) or 0
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=list(examples),
        data_collator=lambda batch: pad(batch, padding),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_progress())
    return trainer


def checkpoint_of(out: str | Path, resume: bool | str | None) -> str | None:
    """The checkpoint that a run continues from: True is the last whole one in ``out``; None starts anew.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the run would lose checkpoints that are there: it starts anew, or continues from another one; or
            copies of them, which the Trainer counts among those it keeps.
    """
    named = list(Path(out).glob('checkpoint-*'))
    there = [p for p in named if p.name.rpartition('-')[2].isdecimal()]
    if copies := [p.name for p in named if p not in there and p.name[len('checkpoint-') :][:1].isdecimal()]:
        raise ValueError(
            f'{out} has {", ".join(sorted(copies))}, which the Trainer takes for a checkpoint of its own and removes; '
            'move it elsewhere.'
        )
    whole = [folder for folder in there if _is_whole(folder)]
    last = str(max(whole, key=lambda folder: int(folder.name.rpartition('-')[2]))) if whole else None
    if resume is None and last:
        raise ValueError(f'{out} has the checkpoint {last}; continue it with --resume, or name another --out.')
    found = last if resume is True else resume
    if resume and not (found and Path(found).is_dir()):
        raise FileNotFoundError(
            f'--resume: there is no checkpoint {found or f"in {out}"}; leave --resume out to start the run.'
        )
    if found and not _is_whole(Path(found)):
        raise ValueError(
            f'--resume: {found} was not written to its end: its {WRITTEN_LAST} is not there, or is none; '
            + (f'--resume alone continues from {last}.' if last else 'leave --resume out to start the run.')
        )
    if found and last and Path(found).resolve() != Path(last).resolve():
        raise ValueError(
            f'{out} has the checkpoint {last}, which a run that continues from {found} would write over or remove; '
            'continue from the last one with --resume alone, or name another --out.'
        )
    return found


def train(trainer: Any, checkpoint: str | None = None) -> None:
    """Trains to the end, from a checkpoint on; of a run that is at its end the weights are loaded and nothing is done.

    The Trainer itself takes a step before it asks for the number of steps.
    """
    args, state = trainer.args, checkpoint and json.loads((Path(checkpoint) / WRITTEN_LAST).read_text())
    batches = math.ceil(len(trainer.train_dataset) / (args.train_batch_size * args.world_size))
    steps = math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
    if state and state['global_step'] >= (args.max_steps if args.max_steps > 0 else steps):
        print(f'{checkpoint} is the end of this run: nothing is left to train.')
        trainer._load_from_checkpoint(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=checkpoint)


def _is_whole(checkpoint: Path) -> bool:
    """Whether the Trainer, which writes a checkpoint in its place, came to its end with it."""
    try:
        return isinstance(json.loads((checkpoint / WRITTEN_LAST).read_text()), dict)
    except (OSError, ValueError):
        return False


CONTINUED = ('lr', 'batch_size', 'warmup', 'weight_decay', 'clip', 'bf16', 'seed')  # of a recipe, by each checkpoint


def run_of(
    recipe: Recipe, train: str, examples: Sequence[Mapping[str, Sequence[int]]], source: nn.Module
) -> dict[str, Any]:
    """What a run is continued with unchanged: the policy, most of the recipe, digests of the examples and the source.

    Epochs and steps may be others; micro-batches change memory alone.

    Args:
        source: the model as it is loaded, not yet scaled.
    """
    given = json.dumps([{k: list(v) for k, v in example.items()} for example in examples], sort_keys=True)
    digest = hashlib.sha256(given.encode()).hexdigest()[:16]
    weights = fingerprint(digests(source.state_dict()))[:16]
    return dict(train=train, **{k: getattr(recipe, k) for k in CONTINUED}, examples=digest, source=weights)


def require_same_run(checkpoint: str | Path, config: Any) -> None:
    """Refuses to continue a checkpoint whose model was scaled, or is trained, otherwise than this one.

    Raises:
        ValueError: naming what differs.
    """
    theirs = json.loads((Path(checkpoint) / 'config.json').read_text())
    ours = json.loads(config.to_json_string())
    theirs[RUN] = ours.get(RUN, {}) | theirs.get(RUN, {})  # what it does not say is not compared
    theirs, ours = ((c.get('scalenet') or {}) | c.get(RUN, {}) for c in (theirs, ours))
    differ = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
    if differ:
        theirs, ours = ({k: c.get(k) for k in differ} for c in (theirs, ours))
        raise ValueError(
            f'{checkpoint} is of a run with {theirs}, and these arguments make {ours}; continue it with the arguments '
            'it was started with, or name another --out without --resume.'
        )


@torch.no_grad()
def to_full_precision(model: nn.Module, trainable: set[str], autocast: bool) -> None:
    """Stores what is trained in float32, in place: steps in half precision round to nothing.

    Raises:
        ValueError: if that leaves a model of two dtypes that no autocast brings together.
    """
    half = [p for n, p in model.named_parameters() if n in trainable and p.dtype.itemsize < 4]
    frozen_half = any(n not in trainable and p.dtype.itemsize < 4 for n, p in model.named_parameters())
    if frozen_half and not autocast:
        raise ValueError(
            f'The frozen weights are stored in {model.dtype}, what is trained in float32: that needs autocast, '
            'bf16=True (--bf16), or load the model in float32.'
        )
    for p in half:
        p.data = p.data.float()


def trainable_table(model: nn.Module) -> str:
    """Tensors and parameters by role, and how many of them are trained."""
    return format_table(('role', 'tensors', 'parameters', 'trained'), role_rows(model))


def _progress() -> Any:
    """A line every few seconds: steps, loss, rate, time left."""
    from transformers import TrainerCallback

    class Shown(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.progress = Progress('training', state.max_steps, state.global_step, unit='step')

        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.is_world_process_zero and 'loss' in logs:
                told = dict(loss=f'{float(logs["loss"]):.4f}', lr=f'{float(logs["learning_rate"]):.2e}')
                self.progress.update(state.global_step, epoch=f'{state.epoch:.2f}', **told)

        def on_train_end(self, args, state, control, **kwargs):
            self.progress.close()

    return Shown()
