"""What is found in a config and its data before anything is built, each for a real way of getting it wrong."""

import copy
import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from scalenet_mm.commands import train
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.runner.config import load_config, move_data_root
from scalenet_mm.runner.preflight import head_classes, preflight, problems
from scalenet_mm.runner.preflight_labels import Note
from scalenet_mm.runner.slips import misspelt_arguments

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
        'have a category_id that no category has, such as 99',
    ),
    'ids of no image': (
        spoil(lambda c: [a.update(image_id='7') for a in c['annotations']]),
        "have an image_id that no image has, such as '7'",
    ),
    'boxes without masks': (
        spoil(lambda c: [a.pop('segmentation') for a in c['annotations']]),
        'no segmentation, but the pipeline reads masks',
    ),
    'images of other names': (
        spoil(lambda c: [i.update(file_name=f'x_{i["file_name"]}') for i in c['images']]),
        'there is no image',
    ),
    'crowds alone': (
        spoil(lambda c: [a.update(iscrowd=1) for a in c['annotations']]),
        r'nothing would be learnt .* (\d+) of \1 boxes .* are ignored',
    ),
    'no area': (spoil(lambda c: [a.update(area=0) for a in c['annotations']]), 'have no area .area <= 0.'),
    'an area missing': (spoil(lambda c: c['annotations'][0].pop('area')), "has no 'area'"),
    'a size missing': (spoil(lambda c: c['images'][0].pop('width')), "has no 'width'"),
    'boxes from 0 to 1': (
        spoil(lambda c: [a.update(bbox=[v / 64 for v in a['bbox']]) for a in c['annotations']]),
        'nothing would be learnt(.|\n)*less than one pixel wide',
    ),
    'boxes beside the image': (
        spoil(lambda c: [a['bbox'].__setitem__(0, 64) for a in c['annotations']]),
        'nothing would be learnt(.|\n)*lie outside of their image',
    ),
    'a name that stands twice': (
        spoil(lambda c: c['categories'].append(dict(id=99, name='3'))),
        r"2 categories of the name '3', with the ids \[4, 99\]",
    ),
    'sizes of other images': (
        spoil(lambda c: [i.update(height=48) for i in c['images']]),
        'is 64 x 64 .height x width. as the pipeline reads it, its entry in the annotations says 48 x 64',
    ),
    'an entry without a name': (spoil(lambda c: c['categories'][0].pop('name')), "an entry of .* has no 'name'"),
}


@pytest.mark.parametrize('case', COCO)
def test_a_coco_json_with(case, run):
    cfg, data = run('coco')
    change, expected = COCO[case]
    change(data / TRAIN_JSON)
    found = [where for where, text in problems(cfg, ('train', 'val')) if not isinstance(text, Note)]
    with pytest.raises(SystemExit, match=expected):
        preflight(cfg)
    assert found == ['train_dataloader.dataset']


def test_what_mmdet_drops_is_said_once_and_does_not_stop_what_is_left(run, capsys, monkeypatch):
    cfg, data = run('coco')
    spoil(lambda c: [a.update(category_id=99) for a in c['annotations'][1:]])(data / TRAIN_JSON)
    every = len(json.loads((data / TRAIN_JSON).read_text())['annotations'])
    preflight(cfg)
    told = capsys.readouterr().out
    assert f'mmdet drops {every - 1} of {every} annotations of {data / TRAIN_JSON}: {every - 1} have a category' in told
    assert '9 of 10 classes do not occur in' in told
    monkeypatch.setenv('RANK', '1')
    preflight(cfg)
    assert not capsys.readouterr().out, 'the first process has said it'


def test_a_filter_that_keeps_no_image(run):
    cfg, _ = run('coco')
    cfg.train_dataloader.dataset.filter_cfg = dict(min_size=65)
    assert "has no sample that filter_cfg={'min_size': 65} keeps" in said(cfg)


def test_data_sets_of_one_loader_are_judged_together(run):
    cfg, data = run('coco')
    leaf = cfg.train_dataloader.dataset
    empty = copy.deepcopy(leaf)
    empty.ann_file = 'annotations/background.json'
    content = json.loads((data / TRAIN_JSON).read_text())
    for a in content['annotations']:
        a['iscrowd'] = 1
    (data / empty.ann_file).write_text(json.dumps(content))
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[leaf, empty])
    preflight(cfg)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[empty, empty])
    assert 'nothing would be learnt' in said(cfg)


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


def test_a_data_set_without_a_type_is_told(run):
    cfg, _ = run('ade')
    cfg.train_dataloader.dataset.pop('type')
    assert 'train_dataloader.dataset: the data set has no type (a _delete_=True takes' in said(cfg)


def test_data_that_lie_elsewhere_are_left_to_their_class(run, monkeypatch):
    cfg, data = run('coco')
    local = cfg.train_dataloader.dataset.ann_file
    monkeypatch.setattr('mmdet.datasets.coco.get_local_path', lambda *_, **__: nullcontext(str(data / local)))
    cfg.train_dataloader.dataset.ann_file = 'https://example.org/ann.json'
    preflight(cfg)


def test_a_map_of_more_pixels_than_pillow_opens_is_read_as_the_pipeline_reads_it(run, monkeypatch):
    cfg, _ = run('ade')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for step in loader.dataset.pipeline:
            if step.type == 'LoadAnnotations':
                step.imdecode_backend = 'cv2'  # which has no such limit
    monkeypatch.setattr('PIL.Image.MAX_IMAGE_PIXELS', 100)
    preflight(cfg)


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


def own_maps(run, change, classes, reduce):
    """The config of own classes, its maps (1 background, 2 ... 11 digits) changed."""
    cfg, data = run('ade')
    for path in sorted(data.rglob('annotations/*/*.png')):
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).astype(np.uint8))
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.update(num_classes=len(classes), loss_decode=dict(class_weight=None))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(metainfo=dict(classes=classes), reduce_zero_label=reduce)
        loader.dataset.pipeline[1].reduce_zero_label = reduce
    return cfg


TWO, THREE = ('background', 'digit'), ('background', 'even', 'odd')
MAPS = {
    'foreground of 255': (lambda m: (m > 1) * 255, TWO, False, r'only class is .background. .* numbers \[0, 255\]'),
    '0 and 1 with reduce_zero_label': (lambda m: m > 1, TWO, True, 'only class is .background. .*0 among them is ign'),
    '0 to 2 with reduce_zero_label': (
        lambda m: np.where(m > 1, m % 2 + 1, 0),
        THREE,
        True,
        "hold the numbers 0 to 2, which are 3 classes counted from 0; .* 'odd' never occurs",
    ),
    'background alone': (lambda m: m * 0, THREE, False, r'numbers \[0\]'),
    '255 alone': (lambda m: m * 0 + 255, THREE, False, 'no label is left'),
    'half the height': (lambda m: (m > 1)[:32], TWO, False, 'is 64 x 64 .height x width.* says 32 x 64'),
    'equal channels': (lambda m: np.dstack([m, m, m]), THREE, False, 'Its channels are equal: save one'),
}


@pytest.mark.parametrize('case', MAPS)
def test_label_maps_that_teach_nothing_or_something_else(case, run):
    change, classes, reduce, expected = MAPS[case]
    with pytest.raises(SystemExit, match=expected):
        preflight(own_maps(run, change, classes, reduce))


def test_a_class_that_no_map_has_is_said_beside_what_is_ignored(run, capsys):
    preflight(own_maps(run, lambda m: np.where(m > 3, 255, m > 1), THREE, False))
    told = capsys.readouterr().out
    assert 'Note: train_dataloader.dataset: 1 of 3 classes do not occur in the label maps' in told
    assert "(19 of 19 looked at): ['odd']" in told and 'are ignored' in told


def test_a_rare_foreground_is_looked_for_before_nothing_is_said_to_be_learnt(run, monkeypatch):
    from scalenet_mm.runner import preflight_files

    monkeypatch.setattr(preflight_files, 'LOOKED_AT', 4)
    rare = iter(range(1000))
    cfg = own_maps(run, lambda m: m * 0 + (next(rare) % 19 == 17), TWO, False)
    preflight(cfg)
    assert len(preflight_files.drawn(19)) == 19 and preflight_files.drawn(19) == preflight_files.drawn(19)


def test_a_rare_last_class_is_looked_for_before_maps_are_said_to_count_from_0(run, monkeypatch):
    from scalenet_mm.runner import preflight_files

    monkeypatch.setattr(preflight_files, 'LOOKED_AT', 4)
    each = iter(range(1000))
    cfg = own_maps(run, lambda m: np.where(m > 1, m % 2 + 1, 0) + (m > 1) * (next(each) % 19 == 17), THREE, True)
    preflight(cfg)
    sample = preflight_files.drawn(6)
    assert sorted(sample) == list(range(6)), 'each once'


def test_palettes_and_numbers_beyond_eight_bits(run):
    from PIL import Image

    cfg, data = run('ade')
    path = data / 'annotations/training/ADE_train_00000001.png'
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(path), labels.astype(np.uint16) + 256)
    assert 'mmseg reads eight bits' in said(cfg)
    picture = Image.fromarray(labels)
    picture.putpalette([i * 37 % 256 for i in range(768)])
    picture.save(path)
    preflight(cfg)  # as mmseg's own backend reads it
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.pipeline[1].imdecode_backend = 'cv2'
    assert "imdecode_backend='pillow'" in said(cfg)


@pytest.mark.parametrize('task', ['ade', 'coco', 'imagenet'])
def test_files_that_are_empty_truncated_or_no_images_are_named(task, run):
    cfg, data = run(task)
    files = sorted(p for p in data.rglob('*') if 'train' in str(p.parent) and p.suffix in ('.jpg', '.png'))
    files = [files[0], files[len(files) // 2], files[-1]]
    whole = files[1].read_bytes()
    for path, content in zip(files, (b'', whole[: len(whole) // 2], b'no image')):
        path.write_bytes(content)
    text = said(cfg)
    assert '3 file(s) of the 19 samples looked at cannot be read' in text, text
    assert all(str(path) in text for path in files)
    assert 'the file is empty' in text and 'truncated' in text


def test_an_image_turned_by_its_exif_entry_does_not_fit_its_map(run):
    from PIL import Image

    cfg, data = run('ade')
    path = data / 'images/training/ADE_train_00000001.jpg'
    picture = Image.open(path).crop((0, 0, 64, 48))
    entry = Image.Exif()
    entry[0x0112] = 6  # a quarter turn
    picture.save(path, exif=entry)
    maps = data / 'annotations/training/ADE_train_00000001.png'
    Image.open(maps).crop((0, 0, 64, 48)).save(maps)
    text = said(cfg)
    assert 'is 64 x 48 (height x width) as the pipeline reads it' in text and 'color_ignore_orientation' in text
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    preflight(cfg)


def test_weights_of_another_number_than_the_classes(run):
    cfg, _ = run('ade')
    cfg.model.decode_head.loss_decode.class_weight = [1.0] * 3
    assert 'model.decode_head.loss_decode.class_weight: 3 weights for 11 classes' in said(cfg)
    cfg, _ = run('coco')
    loss = cfg.model.roi_head.bbox_head.loss_cls
    loss.class_weight = [1.0] * 10
    assert '10 weights for 10 classes' in said(cfg) and 'write 11' in said(cfg)
    loss.class_weight = [1.0] * 11
    preflight(cfg)
    loss.use_sigmoid = True
    assert 'write 10' in said(cfg)


def test_an_ignored_number_that_no_loss_reads(run):
    cfg, _ = run('ade')
    cfg.train_dataloader.dataset.ignore_index = 7
    assert 'ignore_index=7 of the data set is read by no loss; the heads ignore [255]' in said(cfg)


def test_an_image_without_a_map_a_coloured_map_and_a_folder_without_images(run):
    cfg, data = run('ade')
    path = data / 'annotations/training/ADE_train_00000001.png'
    cv2.imwrite(str(path), np.zeros((64, 64, 3), np.uint8))
    assert 'is a colour image' in said(cfg)
    path.unlink()
    assert 'there is no label map' in said(cfg) and '(1 of 19 are not there)' in said(cfg)
    cfg.train_dataloader.dataset.img_suffix = '.tiff'
    assert "ends in '.tiff'" in said(cfg)


def test_labels_and_folders_that_do_not_fit_the_classes_of_a_classifier(run):
    cfg, data = run('imagenet')
    listed = data / 'meta/train.txt'
    listed.write_text(listed.read_text().replace(' 18', ' 19'))
    assert 'has the labels [19]' in said(cfg)
    listed.write_text(listed.read_text().replace(' 3\n', ' three\n'))
    assert 'each line is "image label"' in said(cfg)
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


def test_folders_of_training_and_a_list_of_validation_may_name_classes_otherwise(run):
    """As ImageNet is kept: WordNet's numbers as folders, and the names of classes beside the list."""
    cfg, data = run('imagenet')
    (data / 'meta/train.txt').unlink()
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = dict(classes=[f'the sum {i}' for i in range(19)])
    preflight(cfg)


def test_a_classifier_of_one_class_and_folders_of_other_names_in_training_and_validation(run):
    cfg, data = run('imagenet')
    listed = data / 'meta/train.txt'
    whole = listed.read_text()
    listed.write_text(re.sub(r' \d+$', ' 5', whole, flags=re.M))
    assert "its only class is '05' (label 5)" in said(cfg)
    listed.unlink()
    (data / 'meta/val.txt').unlink()
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        del loader.dataset['metainfo']
        loader.dataset.type = 'CustomDataset'
        loader.dataset.data_prefix = loader.dataset.pop('split')
    preflight(cfg)  # classes are the folders
    (data / 'val/04').rename(data / 'val/4')
    assert "label 4 is '05' here and '04' in train_dataloader" in said(cfg)


def test_data_that_come_without_files_are_counted_too(tmp_path, configs):
    import pickle

    cfg = copy.deepcopy(configs['imagenet'])
    cfg.work_dir, cfg.val_dataloader = str(tmp_path / 'w'), None
    (tmp_path / 'cifar').mkdir()
    labels = [0] * 6
    for name in [f'data_batch_{i}' for i in range(1, 6)]:
        pixels = np.zeros((6, 3072), np.uint8)
        (tmp_path / 'cifar' / name).write_bytes(pickle.dumps(dict(data=pixels, labels=labels)))
    text = (
        'from mmpretrain.datasets import CIFAR10\nfrom mmpretrain.registry import DATASETS\n\n\n'
        '@DATASETS.register_module(force=True)\nclass OwnCIFAR(CIFAR10):\n'
        "    base_folder = ''\n    train_list = [[f'data_batch_{i}', ''] for i in range(1, 6)]\n"
        "    meta = dict(filename='none', key='label_names', md5='')\n"
        '    def _check_integrity(self):\n        return True\n'
    )
    exec(text, {})
    classes = [f'{i:02d}' for i in range(19)]
    cfg.train_dataloader.dataset = dict(
        type='OwnCIFAR',
        data_root=str(tmp_path / 'cifar'),
        split='train',
        download=False,
        metainfo=dict(classes=classes),
        pipeline=[dict(type='PackInputs')],
    )
    assert "its only class is '00' (label 0)" in said(cfg, ('train',))


@pytest.mark.parametrize(
    ('key', 'told'),
    [
        ('model.backbone.embed_dim', r"model.backbone: ScaleNetSwin takes no \['embed_dim'\] \(near are: embed_dims"),
        ('model.bakcbone', r"model: MaskRCNN takes no \['bakcbone'\] \(near are: backbone"),
        ('model.roi_head.bbox_haed', r"StandardRoIHead takes no \['bbox_haed'\] \(near are: bbox_head"),
        ('model.backbone.norm_cfg.requires_grad', None),
        ('model.rpn_head.loss_cls.bg_cls_weight', None),  # DETR's heads take it out of the dict
    ],
)
def test_a_misspelt_argument_of_a_part_of_the_model_is_named_with_the_nearest(key, told):
    cfg = load_config(str(CONFIGS / 'demo' / 'mask_rcnn_scalenet_swin_digits.py'))
    assert not list(misspelt_arguments(cfg))
    cfg.merge_from_dict({'model.backbone.norm_cfg': dict(type='LN'), key: True})
    found = [f'{where}: {text}' for where, text in misspelt_arguments(cfg)]
    assert bool(found) == bool(told) and (not told or re.search(told, found[0]))


def test_a_misspelt_argument_is_refused_without_the_other_checks_too(tmp_path):
    base = CONFIGS / 'demo' / 'mask_rcnn_scalenet_swin_digits.py'
    own, work_dir = tmp_path / 'own.py', tmp_path / 'run'
    own.write_text(f"_base_ = ['{base}']\nmodel = dict(rpn_head=dict(feat_chanels=9))\n")
    said = r"own.py: model.rpn_head: RPNHead takes no \['feat_chanels'\] \(near are: feat_channels"
    with pytest.raises(SystemExit, match=said):
        train.main([str(own), '--work-dir', str(work_dir), '--no-preflight'])
    assert not work_dir.exists()


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        ('train_cfg = dict(max_epoch=3)', r"train_cfg: this dict takes no \['max_epoch'\] \(near are: max_epochs"),
        ("model = dict(backbone=dict(type='ScaleNetDeit'))", "model.backbone.type: .*Write 'ScaleNetDeiT'"),
        ("model = dict(backbone=dict(scale=dict(adjust=dict(_delete_=True, type='LoRA', rnk=4))))", 'near are: rank'),
        ('model = dict(backbone=dict(scale=dict(adjust=dict(_delete_=True, rnk=4))))', 'adjust: .*near are: rank'),
        ('model = dict(backbone=dict(scale=dict(time=3)))', 'backbone.scale: .*near are: times'),
        ('train_dataloader = dict(batch_sise=2)', 'train_dataloader: .*near are: batch_size'),
        ('train_dataloader = dict(sampler=dict(shuffled=True))', 'DefaultSampler takes no .*near are: shuffle'),
        ('default_hooks = dict(checkpointt=dict(type="CheckpointHook"))', 'default_hooks: .*near are: checkpoint'),
        ('default_hooks = dict(checkpoint=dict(intervals=1))', 'CheckpointHook takes no .*near are: interval'),
        ('custom_hooks = [dict(type="EMAHok")]', r"custom_hooks.0.type: there is no 'EMAHok', and 'EMAHook' is near"),
        ('optim_wrapper = dict(optimizer=dict(weight_dekay=0))', 'AdamW takes no .*near are: weight_decay'),
        ('optim_wrapper = dict(paramwise_cfg=dict(custom_key={}))', 'paramwise_cfg: .*near are: custom_keys'),
        ('param_scheduler = [dict(type="CosineAnnealingLR", T_maxx=3)]', 'param_scheduler.0: .*near are: T_max'),
        ('val_evaluator = dict(topkk=(1,))', 'Accuracy takes no .*near are: topk'),
        ('visualizer = dict(vis_backend=[])', 'near are: vis_backends'),
        ('randomness = dict(sed=3)', 'randomness: .*near are: seed'),
        ('runner_type = "ScaleNetRuner"', "runner_type: .*Write 'ScaleNetRunner'"),
        ('default_hooks = dict(mine=dict(type="CheckpointHook", interval=1, priority=49, backend="pavi"))', None),
        ('optim_wrapper = dict(accumulative_counts=4, clip_grad=dict(max_norm=1.0))', None),
        ('param_scheduler = [dict(type="CosineAnnealingLR", T_max=3, convert_to_iter_based=True)]', None),
        ('train_dataloader = dict(num_batch_per_epoch=2, drop_last=True)', None),
        ('train_pipeline = [dict(type="Resise")]', None),  # a variable, which nothing builds
    ],
)
def test_a_slip_anywhere_in_a_config_file_is_refused_with_the_nearest(line, told, tmp_path):
    own = tmp_path / 'own.py'
    own.write_text(f"_base_ = ['{CONFIGS / 'scalenet_deit_t_100e.py'}']\n{line}\n")
    if told is None:
        load_config(str(own))
        return
    with pytest.raises(SystemExit, match=f'^{re.escape(str(own))}: .*{told}'):
        load_config(str(own))
