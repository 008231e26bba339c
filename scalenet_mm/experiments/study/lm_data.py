"""A small language to try Llama on one CPU thread: generated tasks in Alpaca's format, and a tokenizer made on the
spot.

Four families; all but 'follow' need one pass over the input, 'follow' needs as many steps as it has hops.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = tuple('abcdefghijkl')
DIGITS = tuple('0123456789')
WORDS = ('follow', 'reverse', 'sort', 'add', 'in', ':', '=')
SPECIAL = ('<pad>', '<s>', '</s>', '<unk>')
FAMILIES = ('follow1', 'follow2', 'follow3', 'reverse', 'sort', 'add')
# Alpaca's own prompts are longer than these tasks.
PROMPTS = {True: '{instruction} in {input} =', False: '{instruction} ='}
MAX_LENGTH = 48


def make_record(family: str, rng: random.Random) -> dict[str, str]:
    """One record of a family.

    >>> make_record('add', random.Random(0))
    {'instruction': 'add', 'input': '6 6 0 4 8', 'output': '2 4', 'family': 'add'}
    """
    if family.startswith('follow'):
        hops = int(family[-1])
        names = rng.sample(LETTERS, 6)
        to = rng.sample(names, 6)
        start = end = rng.choice(names)
        for _ in range(hops):
            end = to[names.index(end)]
        pairs = ' '.join(f'{a} {b}' for a, b in zip(names, to))
        return dict(instruction=f'follow {hops} {start}', input=pairs, output=end, family=family)
    if family == 'add':
        given = [rng.choice(DIGITS) for _ in range(5)]
        answer = list(str(sum(map(int, given))))
    else:
        given = rng.sample(LETTERS, rng.randint(4, 6))
        answer = sorted(given) if family == 'sort' else given[::-1]
    return dict(instruction=family, input=' '.join(given), output=' '.join(answer), family=family)


def make_records(
    n: int, seed: int, without: Sequence[Mapping[str, str]] = (), families: Sequence[str] = FAMILIES
) -> list[dict[str, str]]:
    """``n`` distinct records, the families in turn, none of them one of ``without``."""
    rng = random.Random(seed)
    known = {_question(r) for r in without}
    found: list[dict[str, str]] = []
    while len(found) < n:
        record = make_record(families[len(found) % len(families)], rng)
        if _question(record) not in known:
            known.add(_question(record))
            found.append(record)
    return found


def _question(record: Mapping[str, str]) -> tuple[str, str]:
    return record['instruction'], record['input']


def make_tokenizer() -> Any:
    """One token a word; a fast tokenizer of Hugging Face's with start, end and pad tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    pad, start, end, unknown = SPECIAL
    words = {w: i for i, w in enumerate((*SPECIAL, *WORDS, *LETTERS, *DIGITS))}
    made = Tokenizer(WordLevel(words, unk_token=unknown))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(
        single=f'{start} $A', pair=f'{start} $A $B', special_tokens=[(start, words[start])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        unk_token=unknown,
        model_input_names=['input_ids', 'attention_mask'],
    )


def toy_config(**changed: Any) -> Any:
    """A Llama of four layers and about 0.15 M parameters."""
    from transformers import LlamaConfig

    tokens = len(SPECIAL) + len(WORDS) + len(LETTERS) + len(DIGITS)
    usual = dict(
        vocab_size=tokens,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaConfig(**{**usual, **changed})
