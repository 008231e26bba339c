"""The manifest of a written layout: its parameters and a fingerprint of every file below it."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

MANIFEST = 'manifest.json'


class NotOurs(FileExistsError):
    """A folder that this tool did not write, which it never replaces."""


def fingerprint(root: Path) -> dict:
    """Count and hash all files below ``root`` except the manifest (names and contents)."""
    paths = sorted(p for p in root.rglob('*') if p.is_file() and p.name != MANIFEST)
    digest = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f'{content}  {path.relative_to(root).as_posix()}\n'.encode())
    return {'files': len(paths), 'sha256': digest.hexdigest()}


def write_manifest(root: Path, parameters: dict) -> dict:
    """Write ``root/manifest.json`` for the files that are there now, and return its content."""
    manifest = {'parameters': parameters, **fingerprint(root)}
    (root / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n')
    return manifest


def verify_manifest(root: Path, parameters: dict) -> dict:
    """Check that ``root`` holds what ``parameters`` ask for, unchanged; return its manifest.

    Raises:
        NotOurs: If the folder was not written by this tool.
        FileExistsError: If it was made with other parameters.
        ValueError: If files were added, removed or changed since.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        known = dict(manifest['parameters'])
        made = {key: manifest[key] for key in ('files', 'sha256')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotOurs(
            f'{root} exists but holds no {MANIFEST} of a demo data set, so it is left alone; name another output folder'
        ) from error
    options = (f'--{key} {parameters[key]}' for key in ('layout', 'train', 'val', 'size', 'seed') if key in parameters)
    command = f'scalenet experiment demo-data {shlex.quote(str(root.parent))} {" ".join(options)} --overwrite'
    way_out = f'name another output folder, or replace it with {command}'
    differing = [
        f'{key} is {known.get(key)!r} there and {parameters.get(key)!r} here'
        for key in sorted({*known, *parameters})
        if known.get(key) != parameters.get(key)
    ]
    if differing:
        raise FileExistsError(f'{root} was made with other parameters ({"; ".join(differing)}); {way_out}')
    found = fingerprint(root)
    if found != made:
        raise ValueError(
            f'{root} changed since it was made: its manifest names {made["files"]} files with '
            f'sha256 {made["sha256"][:12]}, found are {found["files"]} with {found["sha256"][:12]}; {way_out}'
        )
    return manifest
