"""What is found in a config and its data before anything is built, each for a real way of getting it wrong."""

import copy
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.runner.config import load_config, move_data_root
from scalenet_mm.runner.preflight import head_classes, preflight, problems

CONFIGS = Path(__file__).parents[1] / 'configs'
DEMO = {'coco': 'mask_rcnn_swin_digits.py', 'ade': 'upernet_swin_digits.py', 'imagenet': 'deit_digits.py'}
TRAIN_JSON = 'annotations/instances_train2017.json'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp('demo'), list(DEMO), train=19, val=19, size=64)


@pytest.fixture(scope='module')
def configs(made):
    """The config of each task, its data in `made`."""
    return {
        task: load_config(str(CONFIGS / 'demo' / name), options={'data_root': str(made[task])})
        for task, name in DEMO.items()
    }


@pytest.fixture
def run(made, configs, tmp_path):
    """(config of a task, its data), copies that a test may spoil."""

    def start(task: str) -> tuple[Config, Path]:
        data, cfg = tmp_path / task, copy.deepcopy(configs[task])
        shutil.copytree(made[task], data)
        move_data_root(cfg, str(data))
        cfg.work_dir = str(tmp_path / 'w')
        return cfg, data

    return start


def said(cfg: Config, stages=('train', 'val')) -> str:
    with pytest.raises(SystemExit) as e:
        preflight(cfg, stages)
    return str(e.value)


@pytest.mark.parametrize('task', DEMO)
def test_sound_data_of_each_task_pass(task, run):
    cfg, _ = run(task)
    preflight(cfg)
    preflight(cfg, ('test',))
    assert not Path(cfg.work_dir).exists(), 'nothing is written'


def test_all_that_is_wrong_is_said_at_once_with_the_way_out(run, tmp_path):
    cfg, _ = run('coco')
    (tmp_path / 'file').touch()
    cfg.work_dir = str(tmp_path / 'file' / 'w')
    cfg.load_from, cfg.randomness = 'no.pth', dict(seed=-1)
    cfg.train_dataloader.dataset.data_root = 'no/such/folder'
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='none.pth')
    text = said(cfg)
    assert text.startswith('Not started: 5 thing(s)')
    for part in (
        'train_dataloader.dataset: there is no folder no/such/folder',
        '--cfg-options data_root=FOLDER',
        '--cfg-options load_from=FILE',
        '--cfg-options model.backbone.init_cfg.checkpoint=FILE',
        'randomness.seed: -1',
        '--work-dir DIR',
    ):
        assert part in text, part


def test_the_variable_of_a_folder_is_named_where_the_config_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f'_base_ = {str(CONFIGS / "demo" / DEMO["coco"])!r}\ntrain_dataloader = dict(dataset=dict('
    for name, root in (('with', "'{{$MY_COCO_ROOT:data/mine/}}'"), ('without', "'data/mine/'")):
        (tmp_path / f'{name}.py').write_text(f'{text}data_root={root}))\n')
    assert 'export MY_COCO_ROOT=FOLDER' in said(load_config('with.py'))
    assert 'export' not in said(load_config('without.py'))


def test_a_path_that_is_missing_says_how_it_was_made_up(run):
    cfg, data = run('coco')
    cfg.train_dataloader.dataset.ann_file = 'annotations/mine.json'
    text = said(cfg)
    assert f'{data}/annotations/mine.json' in text
    assert f"(data_root '{data}/' + ann_file)" in text
    assert '--cfg-options train_dataloader.dataset.ann_file=PATH' in text


def test_annotations_of_other_names_which_mmdet_drops_without_a_word(run):
    cfg, _ = run('coco')
    leaf = cfg.train_dataloader.dataset
    leaf.metainfo = dict(classes=[f'digit {i}' for i in range(10)])
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build({**leaf, 'pipeline': []})
    assert sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset))) == 0
    text = said(cfg)
    assert "metainfo.classes has ['digit 0'" in text and "categories are ['0', '1'" in text


def test_classes_in_another_order_than_the_file_numbers_them(run):
    cfg, _ = run('coco')
    leaf = cfg.train_dataloader.dataset
    leaf.metainfo = dict(classes=[str(i) for i in reversed(range(10))])
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build({**leaf, 'pipeline': []})
    assert dataset.cat_ids == list(range(1, 11)), 'label 0 is the digit 0, which is named 9'
    assert 'in the order' in said(cfg)


def spoil(change):
    def spoiled(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoiled


COCO = {
    'a truncated file': (lambda p: p.write_bytes(p.read_bytes()[:-9]), 'is no JSON'),
    'no annotations': (spoil(lambda c: c.update(annotations=[])), 'has no annotations'),
    'a list': (lambda p: p.write_text('[]'), 'has no images, no annotations, no categories'),
    'ids of no category': (
        spoil(lambda c: [a.update(category_id=99) for a in c['annotations']]),
        'has the id of one of its categories',
    ),
    'ids of no image': (
        spoil(lambda c: [a.update(image_id='7') for a in c['annotations']]),
        'and of one of its images',
    ),
    'boxes without masks': (
        spoil(lambda c: [a.pop('segmentation') for a in c['annotations']]),
        'no segmentation, but the pipeline reads masks',
    ),
    'images of other names': (
        spoil(lambda c: [i.update(file_name=f'x_{i["file_name"]}') for i in c['images']]),
        'there is no image',
    ),
    'an entry without a name': (spoil(lambda c: c['categories'][0].pop('name')), "an entry of .* has no 'name'"),
}


@pytest.mark.parametrize('case', COCO)
def test_a_coco_json_with(case, run):
    cfg, data = run('coco')
    change, expected = COCO[case]
    change(data / TRAIN_JSON)
    (problem,) = problems(cfg, ('train', 'val'))
    with pytest.raises(SystemExit, match=expected):
        preflight(cfg)
    assert problem[0] == 'train_dataloader.dataset'


def test_predictions_that_would_be_compared_with_another_files_annotations(run):
    cfg, data = run('coco')
    cfg.val_evaluator.ann_file = str(data / TRAIN_JSON)
    assert 'val_evaluator.ann_file' in said(cfg) and 'of other images' in said(cfg)
    cfg.val_evaluator.ann_file = str(data / 'none.json')
    assert 'there is no file' in said(cfg)


@pytest.mark.parametrize(
    ('task', 'key', 'value'),
    [
        ('coco', 'model.roi_head.bbox_head.num_classes', 80),
        ('coco', 'model.roi_head.mask_head.num_classes', 80),
        ('ade', 'model.decode_head.num_classes', 150),
        ('ade', 'model.auxiliary_head.num_classes', 10),
        ('imagenet', 'model.head.num_classes', 1000),
        ('imagenet', 'model.data_preprocessor.num_classes', 20),
    ],
)
def test_a_head_for_another_number_of_classes(task, key, value, run):
    cfg, _ = run(task)
    cfg.merge_from_dict({key: value})
    assert f'but {key} = {value}.' in said(cfg)


def test_heads_in_lists_and_of_two_numbers_are_counted_and_objectness_is_not():
    head = dict(num_classes=3)
    cascade = dict(rpn_head=dict(num_classes=1), roi_head=dict(bbox_head=[head, dict(num_classes=4)]))
    assert head_classes(Config(dict(model=cascade))) == {
        'model.roi_head.bbox_head.0.num_classes': 3,
        'model.roi_head.bbox_head.1.num_classes': 4,
    }
    query = Config(dict(model=dict(panoptic_head=dict(num_things_classes=8, num_stuff_classes=5))))
    assert list(head_classes(query).values()) == [13]


def test_one_class_written_without_its_comma(run):
    cfg, _ = run('coco')
    cfg.train_dataloader.dataset.metainfo = dict(classes='cat')
    assert "classes=('cat',)" in said(cfg)


def test_the_classes_of_a_data_set_whose_metainfo_was_forgotten(run):
    cfg, _ = run('coco')
    cfg.train_dataloader.dataset.pop('metainfo')
    assert "80 classes (CocoDataset's own, as metainfo names none" in said(cfg)


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'ConcatDataset', 'MultiImageMixDataset'])
def test_wrapped_data_sets_are_looked_into(wrapper, run):
    cfg, data = run('coco')
    leaf = copy.deepcopy(cfg.train_dataloader.dataset)
    extra = dict(times=2) if wrapper == 'RepeatDataset' else {}
    inner = dict(datasets=[leaf]) if wrapper == 'ConcatDataset' else dict(dataset=leaf)
    cfg.train_dataloader.dataset = dict(type=wrapper, **inner, **extra)
    preflight(cfg)
    (data / TRAIN_JSON).write_text('{}')
    key = 'dataset.datasets.0' if wrapper == 'ConcatDataset' else 'dataset.dataset'
    assert f'train_dataloader.{key}: {data}/{TRAIN_JSON} has no images' in said(cfg)


def test_labels_of_no_class_in_a_map(run):
    cfg, data = run('ade')
    path = data / 'annotations/training/ADE_train_00000001.png'
    cv2.imwrite(str(path), np.full((64, 64), 12, np.uint8))  # 11 classes are 1 to 11 in the file
    assert 'hold [11] (with reduce_zero_label=True), but 11 classes are 0 to 10' in said(cfg)


def test_labels_that_start_at_1_without_reduce_zero_label(run):
    cfg, _ = run('ade')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.reduce_zero_label = False
    assert 'LoadAnnotations in its pipeline has True' in said(cfg)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline[1].reduce_zero_label = False
    assert 'set reduce_zero_label=True' in said(cfg)


def test_an_image_without_a_map_a_coloured_map_and_a_folder_without_images(run):
    cfg, data = run('ade')
    path = data / 'annotations/training/ADE_train_00000001.png'
    cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
    assert 'is a colour image' in said(cfg)
    path.unlink()
    assert 'has no label map' in said(cfg)
    cfg.train_dataloader.dataset.img_suffix = '.tiff'
    assert "ends in '.tiff'" in said(cfg)


def test_labels_and_folders_that_do_not_fit_the_classes_of_a_classifier(run):
    cfg, data = run('imagenet')
    listed = data / 'meta/train.txt'
    listed.write_text(listed.read_text().replace(' 18', ' 19'))
    assert "has the labels ['19']" in said(cfg)
    listed.write_text('')
    assert 'is empty' in said(cfg)
    listed.unlink()
    preflight(cfg)  # one folder a class
    shutil.rmtree(data / 'train/07')
    assert 'has 18 folders, but the config has 19 classes' in said(cfg)
    shutil.rmtree(data / 'train/00')
    (data / 'train/00').mkdir()
    (data / 'train/07').mkdir()
    assert 'train/00 has no image' in said(cfg)
