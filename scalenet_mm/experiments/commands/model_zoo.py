"""Write model-index.yml, the metafiles and docs/model_zoo.md from the configs.

    scalenet experiment model-zoo           # writes what changed
    scalenet experiment model-zoo --check   # writes nothing; exit status 1 and what differs

Counts come from the built networks, figures of the paper from scalenet_mm/experiments/paper/recount.py, results from
docs/results/models/*.json (put the result.json of a bundle of scalenet experiment reproduce there).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from ...commands.main import command_parser
from ..paper.model_index import make_index, page, read_models

ROOT = Path(__file__).resolve().parents[3]
COMMAND = 'scalenet experiment model-zoo'


class _Plain(yaml.SafeDumper):
    """No anchors: every entry stands by itself."""

    def ignore_aliases(self, data) -> bool:
        return True


def files(root: Path) -> dict[str, str]:
    """Path relative to ``root`` -> text."""
    models = read_models(root / 'configs', root / 'docs' / 'results' / 'models')
    head = f'# Written by `{COMMAND}`; do not edit.\n'
    texts = {
        path: head + yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
        for path, content in make_index(models).items()
    }
    return texts | {'docs/model_zoo.md': page(models, COMMAND)}


def main(argv: Sequence[str]) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--check', action='store_true', help='compare only')
    args = parser.parse_args(argv)
    if not (ROOT / 'configs').is_dir():
        raise SystemExit(f'{ROOT} has no configs: the pages are written in a checkout of the repository.')
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
        print(f'removed {path}, whose folder is not listed any more')
    if not different and not outdated:
        print('Nothing has changed.')
    return 0
