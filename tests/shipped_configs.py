"""`scalenet init` on what the libraries ship: python tests/shipped_configs.py [FAMILY ...] [--work-dir DIR]

Every shipped config with a Swin or ViT is read and its backbone looked for. Of each family (a folder of a library) the
one with the smallest backbone is then built with random weights, written by `scalenet init`, and trained two steps on
made-up images. One to five minutes each on one core; what was tried is not tried again. Writes docs/init.md's table.
"""

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import mmdet
import mmpretrain
import mmseg
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

import scalenet_mm  # noqa: F401 - reads all three libraries' configs
from scalenet_mm.checkpoint.loading import build_model, load_weights
from scalenet_mm.compat import quiet, read_config, scope_of
from scalenet_mm.core.flops import meta_parameters
from scalenet_mm.models.adoption import AdoptionError, adopt, find_backbone
from scalenet_mm.models.adoption_proofs import at, without_weights
from scalenet_mm.models.adoption_text import difference, leaf_text
from scalenet_mm.models.made_up import SIZES, made_up
from scalenet_mm.progress import Progress
from scalenet_mm.runner.config import complete_config
from scalenet_mm.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'init.md'
BEGIN, END = '<!-- table: python tests/shipped_configs.py -->\n', '<!-- end of the table -->'
# Types, with what stands before and behind: DistilledVisionTransformer, SwinTransformerV2, mmpretrain's BEiTViT
NAMES, NO_VIT = ('SwinTransformer', 'VisionTransformer', 'BEiT'), 'PyramidVisionTransformer'
MODELS_OF = {'mmpretrain': ('ImageClassifier',)}  # what it ships besides is no classifier
SECONDS = 1800
HEAD = ('family', 'configs', 'backbone found', 'tried', 'what came of it')


def shipped() -> Iterator[tuple[str, Config]]:
    """Name and config of everything with a Swin or ViT."""
    for library in (mmdet, mmseg, mmpretrain):
        folder = Path(library.__file__).parent / '.mim' / 'configs'
        for file in sorted(folder.glob('[!_]*/*.py')):
            try:
                cfg = read_config(file)
            except Exception:  # some cannot be read: a base of another shape, of another form, or not there
                continue
            models = MODELS_OF.get(library.__name__)
            if 'model' not in cfg or (models and cfg.model.get('type') not in models):
                continue
            kinds = {str(node.get('type')) for node in dicts(cfg.model)}
            if any(name in kind and NO_VIT not in kind for name in NAMES for kind in kinds):
                yield f'{library.__name__}::{file.relative_to(folder)}', cfg


def dicts(node) -> Iterator[Mapping]:
    """Every dict of a part of a config."""
    if isinstance(node, Mapping):
        yield node
    for item in node.values() if isinstance(node, Mapping) else node if isinstance(node, (list, tuple)) else ():
        yield from dicts(item)


def found(cfg: Config) -> str | None:
    """Where the backbone is, or nothing."""
    cfg.default_scope = scope_of(cfg)
    try:
        return find_backbone(cfg)[0]
    except AdoptionError:
        return None


def width(cfg: Config, where: str) -> int:
    """Parameters of the backbone."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), meta_parameters(), quiet():
        return sum(p.numel() for p in MODELS.build(without_weights(at(cfg, where))).parameters())


@cache
def families() -> dict[str, tuple[int, int, str]]:
    """Numbers of configs and of those whose backbone is found, and the one to try."""
    listed: dict[str, list] = {}
    for name, cfg in shipped():
        listed.setdefault(name.rpartition('/')[0], []).append((name, cfg, found(cfg)))
    chosen = {}
    for family, entries in listed.items():
        known = [(name, cfg, where) for name, cfg, where in entries if where]
        sized = [(width(cfg, where), name) for name, cfg, where in known]
        chosen[family] = len(entries), len(known), min(sized)[1] if sized else entries[0][0]
    return chosen


def stood_in_for(cfg: Config, folder: Path) -> list[str]:
    """Replaces in a config what is not there without a network or another package; says what."""
    said = []
    for node in dicts(cfg.model):
        if isinstance(node.get('num_cp'), int) and node.num_cp > 0:
            node.num_cp = 0
            said.append('num_cp=0, as it needs fairscale')
        for key in ('name', 'lang_model_name'):
            if str(node.get(key)).startswith('bert-'):
                node[key] = str(small_bert(folder / 'bert'))
                said.append('a small BERT of random weights')
    return list(dict.fromkeys(said))


def small_bert(folder: Path) -> Path:
    """A BERT that writes every word letter by letter, as Hugging Face stores one."""
    if not folder.exists():
        from transformers import BertConfig, BertModel, BertTokenizer

        folder.mkdir()
        letters = 'abcdefghijklmnopqrstuvwxyz'
        words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?', *letters, *(f'##{x}' for x in letters)]
        (folder / 'vocab.txt').write_text('\n'.join(words))
        BertTokenizer(str(folder / 'vocab.txt')).save_pretrained(folder)
        BertModel(BertConfig(len(words), num_hidden_layers=6, intermediate_size=768)).save_pretrained(folder)
    return folder


def try_out(name: str) -> str:
    """What ``scalenet init`` says of this config with random weights, and two steps of what it wrote."""
    cfg = read_config(name)
    cfg.default_scope = scope_of(cfg)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, 'own.pth')
        untouched = cfg._cfg_dict.to_dict()
        if changed := stood_in_for(cfg, Path(folder)):
            base = Path(folder, 'own.py')
            base.write_text(leaf_text([f'_base_ = {name!r}'], difference(untouched, cfg._cfg_dict.to_dict()), 'model'))
            name = str(base)
        plain = copy.deepcopy(cfg)
        if plain.model.get('pretrained'):
            plain.model.pretrained = None
        where = found(cfg)
        if where:
            at(plain, where)['init_cfg'] = plain.model.init_cfg = None
            model = revert_sync_batchnorm(build_model(plain))
            model.init_weights()
            torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
        adopted = adopt(name, checkpoint, Path(folder, 'scaled.py'), dict(times=2, rank=16))
        # As Runner does: mmdet's DETRs tie layers in the first pass, and an optimizer is built before it
        completed = complete_config(copy.deepcopy(adopted.config))
        model = revert_sync_batchnorm(build_model(completed))
        load_weights(model, checkpoint)
    lines, settings = len(adopted.text.splitlines()), completed.optim_wrapper
    settings.pop('loss_scale', None)
    settings.type = 'OptimWrapper'  # no mixed precision on a CPU
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, settings)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        images, samples = made_up(cfg, SIZES[cfg.default_scope])
        for _ in range(2):
            data = dict(inputs=images, data_samples=copy.deepcopy(samples))
            losses = model.train_step(data, wrapper)
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert moved and moved <= set(adopted.proofs.trained), sorted(moved)[:5]
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values()), losses
    return '; '.join([f'written ({lines} lines), trained', *changed])


def outcome(name: str) -> str:
    command = [sys.executable, __file__, '--one', name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f'not done within {SECONDS // 60} minutes'
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return said[-1] if said else f'ended with status {done.returncode}'


def in_short(said: str) -> str:
    """Without the folders and the exception's module; of what is refused, the reason alone."""
    said = re.sub(r'[\w.]+\.(\w+Error): ', r'\1: ', re.sub(r'\S*/([^/\s]+)', r'\1', said.replace('|', '/')))
    for before in ('has no backbone that can be scaled by its config: ', 'itself takes no training step'):
        _, found, rest = said.partition(before)
        if found and 'itself' in before:
            said = f"the library's own model takes no training step either{rest}"
        elif found:
            said = f'refused: {rest.partition(". ")[0]}'
    return said if len(said) <= 150 else f'{said[:150].rpartition(" ")[0]} ...'


def page(results: dict[str, str]) -> None:
    """Puts the table into the page."""
    rows = []
    for family, (number, known, name) in families().items():
        said = in_short(results.get(name, 'not run'))
        rows.append((family.replace('::', ' '), number, known, Path(name).stem, said))
    rows.sort(key=lambda row: row[2] == 0)
    written, hosts = sum(row[-1].startswith('written') for row in rows), sum(row[2] > 0 for row in rows)
    text = (
        f'\n{written} of the {hosts} families with a Swin or ViT of the libraries are written and trained. '
        f'{len(rows) - hosts} more families have\nanother '
        'class of backbone, or no head, and are refused with the reason.'
        '\n\n'
        f'{markdown_table(list(HEAD), rows)}\n'
    )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('family', nargs='*', help='such as mmseg::setr (default: all)')
    p.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'shipped')
    p.add_argument('--one', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        print(try_out(args.one))
        return
    if unknown := [family for family in args.family if family not in families()]:
        p.error(f'no family {unknown}; there are {", ".join(families())}')
    args.work_dir.mkdir(parents=True, exist_ok=True)
    kept = args.work_dir / 'results.json'
    results = json.loads(kept.read_text()) if kept.exists() else {}
    names = [name for family, (_, _, name) in families().items() if not args.family or family in args.family]
    with Progress('shipped configs', len(names), unit='config') as shown:
        for i, name in enumerate(names, 1):
            if name not in results:
                results[name] = outcome(name)
                kept.write_text(json.dumps(results, indent=1))
            print(f'{name}: {results[name]}', flush=True)
            shown.update(i)
    page(results)


if __name__ == '__main__':
    main()
