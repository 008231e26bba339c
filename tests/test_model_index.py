"""The model index: every config is in it, counted, and no figure of the paper is passed off as measured."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from scalenet_mm.experiments.paper import model_index
from scalenet_mm.experiments.paper.recount import ROWS, find
from scalenet_mm.runner.config import load_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def models():
    """Every model of every file that model-index.yml names, by its config."""
    found = {}
    for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        for model in yaml.safe_load((ROOT / path).read_text())['Models']:
            assert model['Config'] not in found
            assert Path(model['Config']).parent == Path(path).parent
            found[model['Config']] = model
    return found


def entry(config: str) -> dict:
    cfg = load_config(str(ROOT / 'configs' / config))
    results = model_index.read_results(ROOT / 'docs' / 'results' / 'models')
    return model_index.entry(cfg, config, model_index.Counter()(cfg), results.get(config, ()))


def test_every_config_is_listed_and_nothing_else(models):
    there = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').rglob('*.py') if p.parent.name != '_base_'}
    assert set(models) == {c for c in there if Path(c).parent.name not in model_index.UNLISTED}
    assert {p.parent.name for p in (ROOT / 'configs').rglob('metafile.yml')}.isdisjoint(model_index.UNLISTED)
    page = (ROOT / 'docs' / 'model_zoo.md').read_text()
    assert [c for c in there if f'(../{c})' not in page] == []


def test_names_are_unique_and_each_model_is_of_a_collection_that_exists(models):
    names = [m['Name'] for m in models.values()]
    assert len(set(names)) == len(names)
    files = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    collections = [c['Name'] for f in files for c in yaml.safe_load((ROOT / f).read_text())['Collections']]
    assert len(set(collections)) == len(collections)
    assert {m['In Collection'] for m in models.values()} == set(collections)


@pytest.mark.parametrize(
    ('config', 'params', 'trained'),
    [  # the exact arithmetic of the paper's digest
        ('scalenet_deit_b_100e.py', 89_553_640, 3_024_384),
        ('scalenet_swin_t_100e.py', 29_246_818, 983_232),
        ('scalenet_deit_t_100e.py', 6_463_912, 6_463_912),
    ],
)
def test_the_listed_counts_are_the_papers_integers(models, config, params, trained):
    meta = models[f'configs/{config}']['Metadata']
    assert (meta['Parameters'], meta['Trainable Parameters']) == (params, trained)


@pytest.mark.parametrize('config', ['scalenet_swin_t_100e.py', 'baselines/mask_rcnn_swin_t_base.py'])
def test_an_entry_is_what_its_config_says_now(models, config):
    assert models[f'configs/{config}'] == entry(config)


def test_what_the_paper_prints_is_never_among_our_results(models):
    for config, model in models.items():
        assert (model['Status'] == 'not run') == ('Results' not in model), config
        for result in model.get('Results', ()):
            assert result['Command'], config
        for printed in model.get('Paper Results', ()):
            for key in printed['Rows']:
                assert find(key).config == config.removeprefix('configs/')
                assert printed['Metrics'].items() <= find(key).result.items()
    printed = [p for m in models.values() for p in m.get('Paper Results', ())]
    listed = [row for row in ROWS if Path(row.config).parent.name not in model_index.UNLISTED]
    assert {key for p in printed for key in p['Rows']} == {row.key for row in listed if row.result}
    assert {key for m in models.values() for key in m.get('Rows', ())} == {r.key for r in listed}
    page = (ROOT / 'docs' / 'model_zoo.md').read_text()
    assert [r.key for r in ROWS if f'`{r.key}`' not in page] == []


def test_the_listed_results_are_those_that_the_documents_give():
    """README.md has the table that the quickstart printed; docs/quickstart.md's seeds ran with one thread."""
    printed = (ROOT / 'README.md').read_text()
    for name, begin in {'deit_micro_digits': 'source', 'scalenet_deit_micro_digits': 'ScaleNet x2, trained'}.items():
        (measured,) = entry(f'demo/{name}.py')['Results']
        figure = measured['Metrics']['top-1']
        assert re.search(rf'^{begin} +{figure} ', printed, re.M)


def test_a_result_without_its_command_or_of_no_config_is_refused(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(dict(config='x.py', metrics={})))
    with pytest.raises(ValueError, match='a.json has no command'):
        model_index.read_results(tmp_path)
    configs = tmp_path / 'configs'
    configs.mkdir()
    (tmp_path / 'a.json').write_text(json.dumps(dict(config='x.py', metrics={}, command='c')))
    with pytest.raises(ValueError, match=r"\['x.py'\], which are no configs"):
        model_index.read_models(configs, tmp_path)


def test_two_configs_of_one_name_are_refused(tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'same.py').touch()
    with pytest.raises(ValueError, match='same'):
        model_index.read_models(tmp_path, tmp_path)


@pytest.mark.parametrize('key', ['table8/swin_t', 'table9/swin_s', 'table1/deit_b'])
def test_images_have_the_size_that_the_papers_rows_are_counted_at(key):
    row = find(key)
    cfg = load_config(str(ROOT / 'configs' / row.config))
    assert model_index.image_size(cfg) == row.input_size


def test_openmmlabs_reader_of_model_indices_takes_ours(models):
    load = pytest.importorskip('modelindex.load_model_index').load
    index = load(str(ROOT / 'model-index.yml'))
    index.check(silent=True)
    assert not index.check_errors
    index.build_models_with_collections()
    assert {m.name for m in index.models} == {m['Name'] for m in models.values()}
    full = next(m for m in index.models if m.name == 'scalenet_deit_t_100e').full_model
    assert full.paper['URL'] == 'https://arxiv.org/abs/2510.18431'
    assert full.results is None


def test_mmpretrains_hub_builds_our_models_by_their_names(monkeypatch):
    from mmpretrain.apis.model import ModelHub, get_model

    monkeypatch.setattr(ModelHub, '_models_dict', {})
    monkeypatch.setattr(ModelHub, '_ModelHub__mmpretrain_registered', True)  # its own stay out
    ModelHub.register_model_index(ROOT / 'model-index.yml', config_prefix=ROOT)
    model = get_model('scalenet_deit_t_100e')
    assert sum(p.numel() for p in model.parameters()) == 6_463_912


def test_mmengine_finds_a_config_of_ours_in_the_packages_mim_folder(tmp_path):
    from mmengine.config.utils import _get_cfg_metainfo

    (tmp_path / '.mim').mkdir()
    for name in ('configs', 'model-index.yml'):  # as setup.py links them
        (tmp_path / '.mim' / name).symlink_to(ROOT / name)
    found = _get_cfg_metainfo(str(tmp_path), 'scalenet_deit_t_100e.py')
    assert found['Name'] == 'scalenet_deit_t_100e'
    assert Config.fromfile(tmp_path / '.mim' / found['Config']).model.backbone.type == 'ScaleNetDeiT'


def repository(folder: Path) -> Path:
    """The demo's classifiers alone, in a listed folder of a repository that reads the package of this one."""
    for name in ('_base_/demo_cls.py', 'demo/deit_digits.py', 'demo/scalenet_deit_digits.py'):
        copy = folder / 'configs' / name.replace('demo/', 'own/')
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / 'configs' / name, copy)
    (folder / 'docs' / 'results' / 'models').mkdir(parents=True)
    return folder


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    code = (
        'import sys, scalenet_mm; from pathlib import Path; from scalenet_mm.experiments.commands import model_zoo; '
        'model_zoo.ROOT = Path.cwd(); sys.exit(model_zoo.main(sys.argv[1:]))'
    )
    command = [sys.executable, '-c', code, *arguments]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_check_fails_for_a_config_that_is_not_listed_and_writing_mends_it(tmp_path):
    folder = repository(tmp_path)
    assert call(folder).returncode == 0
    assert call(folder, '--check').returncode == 0
    shutil.copy(folder / 'configs' / 'own' / 'deit_digits.py', folder / 'configs' / 'own' / 'new.py')
    done = call(folder, '--check')
    assert done.returncode == 1 and 'configs/own/metafile.yml is not' in done.stdout
    bundle = dict(config='own/new.py', metrics={'top-1': 12.5}, command='python tools/x.py')
    (folder / 'docs' / 'results' / 'models' / 'r.json').write_text(json.dumps(bundle))
    assert call(folder).returncode == 0
    assert 'top-1 12.5 [1]' in (folder / 'docs' / 'model_zoo.md').read_text()
    assert call(folder, '--check').returncode == 0


@pytest.mark.slow
def test_the_committed_index_is_what_the_configs_say():
    done = call(ROOT, '--check')
    assert done.returncode == 0, done.stdout
