#!/usr/bin/env python
"""Write model-index.yml, every configs/**/metafile.yml and docs/model_zoo.md from the configs.

    python tools/make_model_index.py           # writes what changed
    python tools/make_model_index.py --check   # writes nothing; exit status 1 and what differs

Counts come from the built networks, figures of the paper from scalenet_mm/analysis/paper.py, results from
docs/results/models/*.json (put the result.json of a bundle of tools/reproduce.py there).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scalenet_mm.analysis.model_index import make_index, page

ROOT = Path(__file__).resolve().parents[1]
COMMAND = 'python tools/make_model_index.py'


class _Plain(yaml.SafeDumper):
    """No anchors: every entry stands by itself."""

    def ignore_aliases(self, data) -> bool:
        return True


def files(root: Path) -> dict[str, str]:
    """Path relative to ``root`` -> text."""
    index = dict(make_index(root / 'configs', root / 'docs' / 'results' / 'models'))
    head = f'# Written by `{COMMAND}`; do not edit.\n'
    texts = {
        path: head + yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
        for path, content in index.items()
    }
    return texts | {'docs/model_zoo.md': page(index, COMMAND)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare only')
    args = parser.parse_args(argv)
    wanted = files(ROOT)
    there = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').rglob('metafile.yml')}
    outdated = there - wanted.keys()
    different = [
        path for path, text in wanted.items() if not (ROOT / path).is_file() or (ROOT / path).read_text() != text
    ]
    if args.check:
        for path in sorted([*different, *outdated]):
            print(f'{path} is not what the configs say.')
        if different or outdated:
            print(f'Write them anew: {COMMAND}')
        return int(bool(different or outdated))
    for path in different:
        (ROOT / path).write_text(wanted[path])
        print(f'wrote {path}')
    for path in outdated:
        (ROOT / path).unlink()
        print(f'removed {path}, whose folder has no config any more')
    if not different and not outdated:
        print('Nothing has changed.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
