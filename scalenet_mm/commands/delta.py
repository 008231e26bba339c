"""Increments as files: what training changed, apart from its base.

    scalenet delta export CKPT --base BASE [--config CFG] [--out F]   a full checkpoint's delta
    scalenet delta info DELTA                                        what is in it
    scalenet delta verify BASE DELTA [--config CFG]                  is it whole, and of this base?
    scalenet delta apply BASE DELTA OUT.pth [--config CFG]           the full checkpoint again
    scalenet delta push DELTA DEST [--license L] [--base-model ID]   to a folder or hf://owner/repo, with a card

BASE is what the run started from (`load_from`), of any dialect; DELTA is a file, its address, or what `push` wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.assemble import apply_to_file, export_delta, verify_delta
from ..checkpoint.delta_file import Delta, beside, read_delta
from ..checkpoint.publish import push_delta
from ..file_names import a_folder, file_ending, require_other
from ..tables import format_table
from .main import command_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    export = commands.add_parser('export', help="a full checkpoint's delta")
    export.add_argument('checkpoint', metavar='CKPT')
    export.add_argument('--base', required=True)
    export.add_argument('--out', type=file_ending('.safetensors'), help='by default beside CKPT')
    info = commands.add_parser('info', help='what is in a delta')
    info.add_argument('delta', metavar='DELTA')
    verify = commands.add_parser('verify', help='is a delta whole, and of this base?')
    apply = commands.add_parser('apply', help='base + delta as a full checkpoint')
    for command in (verify, apply):
        command.add_argument('base', metavar='BASE')
        command.add_argument('delta', metavar='DELTA')
    apply.add_argument('out', metavar='OUT.pth', type=file_ending('.pth'))
    push = commands.add_parser('push', help='to a folder or hf://owner/repo, with a model card')
    push.add_argument('delta', metavar='DELTA')
    push.add_argument('dest', metavar='DEST', type=folder_or_hub)
    push.add_argument('--license', default='apache-2.0', help='of the weights, as the Hub names it')
    push.add_argument('--base-model', help="the base's Hub repository, owner/repo")
    for command in (export, verify, apply):
        command.add_argument('--config', help='by default the one inside the file')
    for command in (export, apply, push):
        command.add_argument('--force', action='store_true', help='replace what is there')
    return parser.parse_args(argv)


def folder_or_hub(text: str) -> str:
    return text if '://' in text else str(a_folder(text))


def new_file(path: Path, force: bool) -> Path:
    """Refuses, before any work, to write over a file."""
    if path.exists() and not force:
        sys.exit(f'{path} is there already; add --force to replace it')
    return path


def report(delta: Delta, path: Path | None = None) -> None:
    """Prints roles, sizes and metadata."""
    rows = [(role, tensors, nbytes) for role, (tensors, nbytes) in delta.roles.items()]
    rows.append(('all', len(delta.tensors), delta.nbytes))
    print(format_table(('role', 'tensors', 'bytes'), rows))
    pairs = {
        'base': f'{delta.base}, {len(delta.base_digests)} tensors, sha256 {delta.fingerprint}',
        **{f'layers {name}': sources for name, sources in delta.layer_maps.items()},
        'classes': len(delta.dataset_meta.get('classes', ())) or 'unknown',
        'position': ', '.join(f'{k} {v}' for k, v in delta.position.items()) or 'unknown',
        'metrics': ', '.join(f'{k} {v:g}' for k, v in delta.metrics.items()) or 'not recorded',
        'versions': ', '.join(f'{k} {v}' for k, v in delta.versions.items()),
        'config': f'{len(delta.config.splitlines())} lines',
    }
    if path is not None:
        pairs = {'written': f'{path} ({path.stat().st_size:,} bytes)', **pairs}
    print()
    print(format_table(('adjustment', 'number'), delta.adapters.items()))
    print()
    width = max(map(len, pairs))
    for key, value in pairs.items():
        print(f'{key.ljust(width)}  {value}')


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    if args.command == 'export':
        out = args.out or beside(args.checkpoint.rpartition('/')[2])
        if args.out is None and '://' not in args.checkpoint:
            out = beside(args.checkpoint)
        require_other([out], [args.checkpoint, args.base])
        new_file(out, args.force)
        report(export_delta(args.checkpoint, args.base, out, args.config), out)
    elif args.command == 'info':
        report(read_delta(args.delta))
    elif args.command == 'verify':
        delta = verify_delta(args.base, args.delta, args.config)
        print(f'{args.delta} is whole and stands on {args.base} (sha256 {delta.fingerprint}).')
    elif args.command == 'apply':
        require_other([args.out], [args.base, args.delta])
        out = new_file(args.out, args.force)
        apply_to_file(args.base, args.delta, out, args.config)
        print(f'written {out} ({out.stat().st_size:,} bytes)')
    else:
        for file in push_delta(args.delta, args.dest, args.license, args.base_model, args.force):
            print(f'written {file}')
