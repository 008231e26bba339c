"""Files that are damaged or foreign, from a seed: each the bytes of a good file after one accident, or none of them."""

import json
import pickle
import random
import struct
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import torch
from safetensors.torch import load, save


class Runs:
    """Makes a file when it is unpickled, as a malicious one would."""

    def __init__(self, target: str):
        self.target = target

    def __reduce__(self):
        return open, (self.target, 'w')


def saved(content) -> bytes:
    with BytesIO() as buffer:
        torch.save(content, buffer)
        return buffer.getvalue()


def opened(data: bytes) -> dict:
    return torch.load(BytesIO(data), weights_only=False)


def weights(content: dict) -> OrderedDict:
    return content.get('state_dict', content)


def floats(state: dict, draw: random.Random) -> str:
    return draw.choice(sorted(k for k, v in state.items() if v.is_floating_point() and v.numel() > 1))


def truncated(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(1, len(data))]


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwritten(data: bytes, draw: random.Random) -> bytes:
    """A block of zeros, as a full disk or a sparse copy leaves it."""
    at, size = draw.randrange(len(data)), draw.choice((16, 512, 4096))
    block = data[at : at + size]
    return data[:at] + bytes(len(block)) + data[at + size :]


def swapped(data: bytes, draw: random.Random) -> bytes:
    """Two blocks of the file exchanged, as a broken transfer leaves it."""
    size = draw.choice((64, 512))
    a, b = sorted(draw.sample(range(len(data) // size), 2))
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    blocks[a], blocks[b] = blocks[b], blocks[a]
    return b''.join(blocks)


def another_type(content: dict, draw: random.Random) -> bytes:
    state = weights(content)
    key, kind = floats(state, draw), draw.choice((torch.int8, torch.int64, torch.bool, torch.complex64, torch.uint8))
    state[key] = (state[key] * 100).to(kind)
    return saved(content)


def quantised(content: dict, draw: random.Random) -> bytes:
    state = weights(content)
    key = floats(state, draw)
    state[key] = torch.quantize_per_tensor(state[key].float(), 0.1, 0, torch.qint8)
    return saved(content)


def renamed(content: dict, draw: random.Random) -> bytes:
    state = weights(content)
    key = draw.choice(sorted(state))
    state[key + draw.choice(('_', '.0', ' '))] = state.pop(key)
    return saved(content)


def left_out(content: dict, draw: random.Random) -> bytes:
    state = weights(content)
    del state[floats(state, draw)]
    return saved(content)


def not_finite(content: dict, draw: random.Random) -> bytes:
    state = weights(content)
    key = floats(state, draw)
    state[key] = state[key].clone()
    state[key].view(-1)[draw.randrange(state[key].numel())] = draw.choice((float('nan'), float('inf'), -float('inf')))
    return saved(content)


def another_shape(content: dict, draw: random.Random) -> bytes:
    state = weights(content)
    key = floats(state, draw)
    state[key] = draw.choice((state[key].flatten()[1:], state[key][None], torch.zeros(0), state[key].sum()))
    return saved(content)


def sparse_or_empty(content: dict, draw: random.Random) -> bytes:
    state = weights(content)
    key = floats(state, draw)
    state[key] = state[key].to_sparse() if draw.random() < 0.5 else state[key].to('meta')
    return saved(content)


def runs_code(content: dict, draw: random.Random) -> bytes:
    program = Runs(str(Path(content.pop('marker'))))
    place = draw.choice(('entry', 'weights', 'all', 'pickle'))
    if place == 'pickle':
        return pickle.dumps(program)
    if place == 'all':
        return saved(program)
    (content if place == 'entry' else weights(content))['x'] = program
    return saved(content)


def foreign(data: bytes, draw: random.Random) -> bytes:
    zipped = BytesIO()
    with ZipFile(zipped, 'w') as file:
        file.writestr('word/document.xml', '<w/>')
    return draw.choice(
        (
            b'',
            b'<!DOCTYPE html><html>not found</html>',
            b'just text, no weights\n' * draw.randrange(1, 9),
            b'{"error": "no such file"}',
            zipped.getvalue(),
            b'\x1f\x8b' + data,
            b'GGUF' + data,
            b'\x89PNG\r\n\x1a\n' + data,
            draw.randbytes(draw.randrange(1, 4000)),
            saved([1, 2]),
            saved('weights'),
            saved({'epoch': 3}),
        )
    )


def bad_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header lies: its length, an offset, an overlap, a type, a shape, or no JSON at all."""
    size = struct.unpack('<Q', data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    a, b = draw.sample(sorted(k for k in header if k != '__metadata__'), 2)
    lie = draw.choice(('length', 'offset', 'overlap', 'type', 'shape', 'text', 'lost'))
    if lie == 'offset':
        header[a]['data_offsets'][1] += draw.choice((-4, 4, 2**40))
    elif lie == 'overlap':
        header[a]['data_offsets'] = header[b]['data_offsets']
    elif lie == 'type':
        header[a]['dtype'] = draw.choice(('I32', 'F16', 'BOOL', 'X9'))
    elif lie == 'shape':
        header[a]['shape'] = [-1, *header[a]['shape']]
    elif lie == 'lost':
        del header[a]
    text = b'{not json' if lie == 'text' else json.dumps(header).encode()
    return struct.pack('<Q', draw.choice((2**62, size * 9)) if lie == 'length' else len(text)) + text + body


# what is done to the bytes of a file, and what to the content of one that is written anew
TO_BYTES: dict[str, Callable] = dict(
    truncated=truncated, flipped=flipped, overwritten=overwritten, swapped=swapped, foreign=foreign
)
TO_CONTENT: dict[str, Callable] = dict(
    another_type=another_type,
    quantised=quantised,
    renamed=renamed,
    left_out=left_out,
    not_finite=not_finite,
    another_shape=another_shape,
    sparse_or_empty=sparse_or_empty,
    runs_code=runs_code,
)
TO_SAFETENSORS: dict[str, Callable] = dict(bad_header=bad_header, truncated_safetensors=truncated)
KINDS = (*TO_BYTES, *TO_CONTENT, *TO_SAFETENSORS)


def damage(kind: str, good: bytes, seed: int, marker: Path) -> bytes:
    """The bytes of a damaged file.

    Args:
        kind: one of ``KINDS``.
        good: of a whole ``.pth``.
        marker: what a file that runs code would make.
    """
    draw = random.Random(f'{kind} {seed}')
    if kind in TO_BYTES:
        return TO_BYTES[kind](good, draw)
    if kind in TO_CONTENT:
        content = opened(good)
        content.update(dict(marker=str(marker)) if kind == 'runs_code' else {})
        return TO_CONTENT[kind](content, draw)
    return TO_SAFETENSORS[kind](save({k: v.contiguous() for k, v in weights(opened(good)).items()}), draw)


def damaged_delta(good: bytes, seed: int) -> bytes:
    """The bytes of a delta after an accident, or with a tensor that is none of its model's."""
    draw = random.Random(f'delta {seed}')
    kind = draw.choice(('truncated', 'flipped', 'overwritten', 'swapped', 'bad_header', 'tensor'))
    if kind != 'tensor':
        return (TO_BYTES | TO_SAFETENSORS)[kind](good, draw)
    size = struct.unpack('<Q', good[:8])[0]
    header, state = json.loads(good[8 : 8 + size])['__metadata__'], load(good)
    key = floats(state, draw)
    state[key] = draw.choice((state[key] * float('nan'), (state[key] * 9).to(torch.int8), state[key][None]))
    return save(state, header)
