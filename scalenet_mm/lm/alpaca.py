"""Instruction data in Alpaca's format, ``[{instruction, input, output}, ...]``; the loss is on the response alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

IGNORED = -100  # the label that torch's cross-entropy leaves out
MAX_LENGTH = 512  # tokens; Stanford Alpaca's, the paper names none
# Stanford Alpaca's two prompts, for records with an input and without.
PROMPTS = {
    True: 'Below is an instruction that describes a task, paired with an input that provides further context. '
    'Write a response that appropriately completes the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:',
    False: 'Below is an instruction that describes a task. '
    'Write a response that appropriately completes the request.\n\n'
    '### Instruction:\n{instruction}\n\n### Response:',
}
KEYS = dict(instruction=True, input=False, output=True)  # key -> whether it must be there


def read_alpaca(path: str | Path) -> list[dict[str, str]]:
    """The records of an Alpaca-format file; other keys are left out, a missing ``input`` is empty.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the record and the key that break the format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'There is no file {path}; name a JSON list of {{"instruction", "input", "output"}}, such as '
            'alpaca_data.json.'
        )
    try:
        records = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        hint = '; JSON lines become a list with: jq -s . FILE' if path.suffix == '.jsonl' else ''
        raise ValueError(f'{path} is not JSON: {error}{hint}.') from error
    if not isinstance(records, list) or not records:
        raise ValueError(
            f'{path} must be a list of at least one record, got {type(records).__name__}: {str(records)[:60]}.'
        )
    return [_record(record, f'{path}, record {i}') for i, record in enumerate(records)]


def _record(record: Any, where: str) -> dict[str, str]:
    if not isinstance(record, Mapping):
        raise ValueError(f'{where} must be an object with the keys {list(KEYS)}, got {record!r}.')
    for key, needed in KEYS.items():
        value = record.get(key, None if needed else '')
        if not isinstance(value, str):
            told = f'is {value!r}' if key in record else f'is missing (it has {list(record)})'
            raise ValueError(f'{where}: the key {key!r} must be text, but it {told}.')
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f'{where}: the key {key!r} holds half a character ({error}); mend the file.') from error
    if not record['instruction'].strip():
        raise ValueError(f"{where}: the key 'instruction' is empty; name the task or drop the record.")
    return {key: record.get(key, '') for key in KEYS}


def prompt(record: Mapping[str, str], prompts: Mapping[bool, str] = PROMPTS) -> str:
    """What the model reads before it answers.

    >>> prompt(dict(instruction='Add.', input='1 2', output='3')).splitlines()[-1]
    '### Response:'
    """
    given = record.get('input', '')
    return prompts[bool(given)].format(instruction=record['instruction'], input=given)


def encode(
    records: Iterable[Mapping[str, str]],
    tokenizer: Any,
    max_length: int = MAX_LENGTH,
    prompts: Mapping[bool, str] = PROMPTS,
) -> list[dict[str, list[int]]]:
    """Token ids and labels of each record: the prompt's labels are ``IGNORED``, the response ends with the end token.

    Prompt and response are tokenised apart, so that the same prompt has the same tokens when the model is asked. What
    is longer than ``max_length`` is cut; a record whose prompt alone fills it, and so has no loss, is left out.

    Raises:
        ValueError: if no record is left, or the tokenizer has no end token.
    """
    records = list(records)
    if tokenizer.eos_token_id is None:
        raise ValueError('The tokenizer has no end token; set tokenizer.eos_token first.')
    asked = tokenizer([prompt(r, prompts) for r in records])['input_ids']
    answered = tokenizer([r['output'] for r in records], add_special_tokens=False)['input_ids']
    found = []
    for before, after in zip(asked, answered):
        ids = [*before, *after, tokenizer.eos_token_id][:max_length]
        labels = [*[IGNORED] * len(before), *after, tokenizer.eos_token_id][:max_length]
        if len(before) < max_length:
            found.append(dict(input_ids=ids, labels=labels))
    if not found:
        shortest = min(map(len, asked))
        raise ValueError(
            f'No record has room for a response: the shortest prompt has {shortest} tokens, max_length is '
            f'{max_length}; raise it above {shortest}.'
        )
    return found


def pad(examples: Sequence[Mapping[str, Sequence[int]]], pad_token_id: int) -> dict[str, Any]:
    """A batch, padded on the right: ``input_ids``, ``labels`` and ``attention_mask``, each (B, L)."""
    import torch

    length = max(len(e['input_ids']) for e in examples)

    def filled(values: Sequence[int], value: int) -> list[int]:
        return [*values, *[value] * (length - len(values))]

    return dict(
        input_ids=torch.tensor([filled(e['input_ids'], pad_token_id) for e in examples]),
        labels=torch.tensor([filled(e['labels'], IGNORED) for e in examples]),
        attention_mask=torch.tensor([filled([1] * len(e['input_ids']), 0) for e in examples]),
    )
