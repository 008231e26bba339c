"""The manifest of a written layout: its parameters and a fingerprint of every file below it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = 'manifest.json'


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
        FileExistsError: If the folder was not written by this tool, or with other parameters.
        ValueError: If files were added, removed or changed since.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise FileExistsError(
            f'{root} exists but holds no {MANIFEST}, so it is not a demo data set and is left '
            'alone; name another output folder'
        )
    manifest = json.loads(path.read_text())
    known, way_out = manifest['parameters'], 'name another output folder, or pass --overwrite'
    differing = [
        f'{key} is {known.get(key)!r} there and {parameters.get(key)!r} here'
        for key in sorted({*known, *parameters})
        if known.get(key) != parameters.get(key)
    ]
    if differing:
        raise FileExistsError(
            f'{root} was made with other parameters ({"; ".join(differing)}); {way_out} to replace it'
        )
    found = fingerprint(root)
    if found != {key: manifest[key] for key in found}:
        raise ValueError(
            f'{root} changed since it was made: its manifest names {manifest["files"]} files with '
            f'sha256 {manifest["sha256"][:12]}, found are {found["files"]} with '
            f'{found["sha256"][:12]}; {way_out} to write it again'
        )
    return manifest
