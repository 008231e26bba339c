"""Differences against cases made by hand, and pictures read back from their files."""

import json
import subprocess
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import scalenet
from mmengine.config import Config
from torchvision.ops import box_iou as torchvision_iou

from scalenet_mm.commands.compare import _drawn_before
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.models.comparison import _label_map, compare, totals, truth_of
from scalenet_mm.models.matching import (
    AGREE,
    BOTH_WRONG,
    DIFFER,
    ONLY_A_RIGHT,
    ONLY_B_RIGHT,
    box_iou,
    difference_map,
    match,
)
from scalenet_mm.models.side_by_side import AREAS, STYLES, Panel, Row, draw_side_by_side, mark_against, mark_pair

ROOT = Path(__file__).parents[1]
CLASSES = ['cat', 'dog', 'owl']
# three places far apart, and one a little moved
LEFT, MIDDLE, RIGHT, LEFT_MOVED = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [1, 0, 11, 10]
CAT, DOG, OWL = range(3)


def panel(*objects, scores=None) -> Panel:
    return Panel(
        boxes=np.array([box for box, _ in objects], float).reshape(-1, 4),
        labels=np.array([label for _, label in objects], int),
        scores=None if scores is None else np.array(scores),
    )


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def test_iou_is_torchvisions():
    rng = np.random.default_rng(0)
    a, b = (rng.random((n, 4)) * 50 for n in (7, 9))
    for boxes in (a, b):
        boxes[:, 2:] += boxes[:, :2]
    expected = torchvision_iou(torch.tensor(a), torch.tensor(b)).numpy()
    np.testing.assert_allclose(box_iou(a, b), expected, rtol=1e-6)
    assert box_iou(np.zeros((0, 4)), b).shape == (0, 9)


def test_objects_are_paired_by_class_and_place_then_by_place():
    a = panel((LEFT, CAT), (MIDDLE, DOG), (RIGHT, OWL))
    b = panel((MIDDLE, CAT), (LEFT_MOVED, CAT))
    found = match(a.boxes, a.labels, b.boxes, b.labels)
    assert found.same == [(0, 1)]  # IoU 9 x 10 / 110 = 0.82
    assert found.changed == [(1, 0)]
    assert (found.only_a, found.only_b) == ([2], [])


def test_boxes_that_overlap_less_than_half_are_at_different_places():
    found = match([[0, 0, 10, 10]], [0], [[4, 0, 14, 10]], [0])  # IoU 60 / 140
    assert found.same == [] and (found.only_a, found.only_b) == ([0], [0])


def test_an_object_is_paired_once_and_pairs_overlap_as_much_as_possible():
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = (np.sort(rng.random((4, 2, 2)) * [20, 20], axis=1).reshape(4, 4) for _ in range(2))
        iou = box_iou(a, b)
        found = match(a, [0] * 4, b, [0] * 4, min_iou=0.05)
        gain = np.where(iou >= 0.05, iou, 0)
        best = max(sum(gain[i, p[i]] for i in range(4)) for p in permutations(range(4)))
        assert sum(iou[i, j] for i, j in found.same) == pytest.approx(best)
        for side in (0, 1):
            used = [pair[side] for pair in found.same]
            assert len(used) == len(set(used))


def test_two_detections_are_marked_by_what_the_other_has():
    a, b = mark_pair(panel((LEFT, CAT), (MIDDLE, DOG), (RIGHT, OWL)), panel((LEFT_MOVED, CAT), (MIDDLE, CAT)), CLASSES)
    assert a.marks == ['same', 'there: cat', 'only here']
    assert b.marks == ['same', 'there: dog']


def test_a_detection_is_marked_by_the_truth_and_shows_what_it_missed():
    truth = panel((LEFT, CAT), (MIDDLE, DOG), (RIGHT, OWL))
    predicted = panel((LEFT_MOVED, CAT), (MIDDLE, OWL), (LEFT, CAT), scores=[0.4, 0.8, 0.9])
    predicted.masks = np.ones((3, 12, 60), bool)
    marked = mark_against(truth, predicted, CLASSES)
    assert marked.marks == ['false', 'truth: dog', 'found', 'missed']  # the second cat there is false
    assert marked.boxes[3].tolist() == RIGHT and marked.labels[3] == OWL
    assert np.isnan(marked.scores[3]) and not marked.masks[3].any()
    assert predicted.marks is None and len(predicted.boxes) == 3  # as it was


@pytest.mark.parametrize(
    'truth, predicted, marks',
    [(panel(), panel((LEFT, CAT)), ['false']), (panel((LEFT, CAT)), panel(), ['missed']), (panel(), panel(), [])],
)
def test_nothing_found_and_nothing_there_are_no_special_cases(truth, predicted, marks):
    assert mark_against(truth, predicted, CLASSES).marks == marks


def test_label_maps_differ_where_one_or_both_are_wrong():
    truth = np.array([[0, 0, 0, 0, 255, 1]])
    a = np.array([[0, 0, 1, 1, 0, 1]])
    b = np.array([[0, 1, 0, 2, 1, 1]])
    codes = difference_map(a, b, truth)
    assert codes.tolist() == [[AGREE, ONLY_A_RIGHT, ONLY_B_RIGHT, BOTH_WRONG, AGREE, AGREE]]
    without = difference_map(a, b)
    assert without.tolist() == [[AGREE, DIFFER, DIFFER, DIFFER, DIFFER, AGREE]]
    with pytest.raises(ValueError, match='different sizes'):
        difference_map(a, b.T)


def test_the_report_counts_what_the_picture_marks():
    truth = panel((LEFT, CAT), (MIDDLE, DOG), (RIGHT, OWL))
    a = panel((LEFT, CAT), (RIGHT, CAT), scores=[0.9, 0.5])
    b = panel((MIDDLE, DOG), (RIGHT, OWL), ([20, 20, 30, 30], OWL), scores=[0.7, 0.6, 0.5])
    panels, report = compare(a, b, truth, CLASSES)
    assert [p.marks and list(p.marks) for p in panels] == [
        None,
        ['found', 'truth: owl', 'missed'],
        ['found', 'found', 'false', 'missed'],
    ]
    assert report['a'] == {'found': 1, 'wrong_class': 1, 'missed': 1, 'false': 0}
    assert report['b'] == {'found': 2, 'wrong_class': 0, 'missed': 1, 'false': 1}
    assert [x['class'] for x in report['found_only_by_b']] == ['dog', 'owl']
    assert report['class_changed'] == [
        [{'class': 'cat', 'box': RIGHT, 'score': 0.5}, {'class': 'owl', 'box': RIGHT, 'score': 0.6}]
    ]
    summed = totals([report, report])
    assert summed['b.found'] == 4 and summed['class_changed'] == 2 and summed['in_both'] == 0


def test_pixels_without_ground_truth_are_not_counted():
    a, b = Panel(semantic=np.array([[0, 1, 1]])), Panel(semantic=np.array([[0, 0, 0]]))
    truth = Panel(semantic=np.array([[0, 1, 255]]))
    _, report = compare(a, b, truth, CLASSES)
    assert report == {
        'pixels': 2,
        'differ': 1,
        'only_a_right': 1,
        'only_b_right': 0,
        'both_wrong': 0,
        'by_class': {'cat': {'only_a': 0, 'only_b': 1}, 'dog': {'only_a': 1, 'only_b': 0}},
    }


def near(picture: np.ndarray, colour: np.ndarray, tolerance: int = 24) -> int:
    return int((np.abs(picture.astype(int) - colour).max(-1) <= tolerance).sum())


def test_a_picture_has_each_marks_colour_and_a_legend(tmp_path):
    image = np.full((128, 128, 3), 90, np.uint8)
    truth = panel(([10, 20, 50, 60], CAT), ([70, 20, 110, 60], DOG))
    right = mark_against(truth, truth, CLASSES)
    wrong = mark_against(truth, panel(([10, 80, 50, 120], OWL)), CLASSES)
    file = tmp_path / 'new' / 'picture.png'
    draw_side_by_side([Row(image, [right, wrong])], ['right', 'wrong'], file, CLASSES)
    picture = cv2.imread(str(file))[..., ::-1]
    left, other = np.split(picture[: int(picture.shape[0] * 0.85)], [picture.shape[1] // 2], axis=1)
    colours = {kind: rgb(style[0]) for kind, style in STYLES.items()}
    assert near(left, colours['found']) > 500 and near(left, colours['false']) == 0
    assert near(other, colours['false']) > 500 and near(other, colours['missed']) > 500
    assert near(other, colours['found']) == 0


def test_a_difference_map_is_drawn_at_its_pixels(tmp_path):
    image = np.full((100, 100, 3), 0, np.uint8)
    codes = np.zeros((100, 100), np.uint8)
    codes[:50], codes[50:, 50:] = ONLY_A_RIGHT, BOTH_WRONG
    file = tmp_path / 'p.png'
    draw_side_by_side([Row(image, [Panel(difference=codes)])], ['difference'], file, CLASSES)
    picture = cv2.imread(str(file))[..., ::-1]
    expected = {code: 0.75 * rgb(AREAS[code][0]) for code in (ONLY_A_RIGHT, BOTH_WRONG)}
    share = near(picture, expected[ONLY_A_RIGHT]) / near(picture, expected[BOTH_WRONG])
    assert share == pytest.approx(2, rel=0.05)  # half of the picture against a quarter


@pytest.mark.parametrize('extreme', ['no object', 'masks alone', 'classes of the image', 'outside'])
def test_every_kind_of_result_is_drawn(extreme, tmp_path):
    made = {
        'no object': panel(),
        'masks alone': Panel(masks=np.eye(16, dtype=bool)[None], labels=np.array([OWL])),
        'classes of the image': Panel(labels=np.array([0, 1]), scores=np.array([0.8, 0.2])),
        'outside': panel(([-5, -5, 40, 40], CAT), scores=[0.5]),
    }[extreme]
    image = np.full((16, 24, 3), 200, np.uint8) if extreme != 'masks alone' else np.full((16, 16, 3), 200, np.uint8)
    draw_side_by_side([Row(image, [made])], ['one'], tmp_path / 'p.png', CLASSES)
    assert cv2.imread(str(tmp_path / 'p.png')) is not None


def test_names_are_drawn_as_they_are_and_not_as_formulas(tmp_path):
    boxes = np.array([[0, 0, 4, 4], [2, 2, 7, 7]], float)
    panel = Panel(boxes, np.array([0, 1]), np.array([0.9, 0.8]), marks=['wrong: $_{', 'found'])
    names = ['us_$1', 'us_$\\frac']
    maps = Panel(semantic=np.zeros((8, 8), int))
    for one in (panel, maps, Panel(labels=np.array([0, 1]), scores=np.array([0.5, 0.4]))):
        file = tmp_path / 'p.png'
        draw_side_by_side([Row(np.zeros((8, 8, 3), np.uint8), [one])], ['IMG_$1_$2^.jpg'], file, names, title='$a^$')
        assert file.is_file()


def test_a_row_with_too_few_panels_is_refused(tmp_path):
    with pytest.raises(ValueError, match='a panel for each of the 2 columns; got 1 rows, one of them with 1 panels'):
        draw_side_by_side([Row(np.zeros((8, 8, 3), np.uint8), [Panel()])], ['a', 'b'], tmp_path / 'p.png', CLASSES)
    assert not any(tmp_path.iterdir())


def run(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run(scalenet('compare', *args), cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Two detectors and two segmentors with weights of their own, and images: a stock Swin of each and its scaled
    one.
    """
    from conftest import perturb

    from scalenet_mm.checkpoint.loading import build_model

    folder = tmp_path_factory.mktemp('compare')
    make_demo_data(folder / 'data', ['coco', 'ade'], train=16, val=8)
    made = {}
    for name in ('mask_rcnn_swin', 'mask_rcnn_scalenet_swin', 'upernet_swin', 'upernet_scalenet_swin'):
        cfg = Config.fromfile(ROOT / f'configs/demo/{name}_digits.py')
        torch.manual_seed(len(made))
        model = perturb(build_model(cfg), std=0.05)
        torch.save(dict(state_dict=model.state_dict()), folder / f'{name}.pth')
        made[name] = [ROOT / f'configs/demo/{name}_digits.py', folder / f'{name}.pth']
    return folder, made


@pytest.mark.slow
def test_two_segmentors_are_compared_against_label_maps(models, tmp_path):
    folder, made = models
    ade = folder / 'data/ade'
    images = sorted((ade / 'images/validation').iterdir())[:5]
    done = run(
        *made['upernet_swin'],
        *made['upernet_scalenet_swin'],
        *images,
        '--ann',
        ade / 'annotations/validation',
        '--out',
        tmp_path,
        '--device',
        'cpu',
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / 'differences.json').read_text())
    assert list(told['images']) == [str(i) for i in images]
    total = told['total']
    files = [str(i).replace('/images/', '/annotations/').replace('.jpg', '.png') for i in images]
    labelled = sum(int((cv2.imread(f, cv2.IMREAD_GRAYSCALE) > 0).sum()) for f in files)
    assert total['pixels'] == labelled
    assert 0 < total['differ'] <= labelled
    assert total['only_a_right'] + total['only_b_right'] <= total['differ']
    for page in (1, 2):
        assert cv2.imread(str(tmp_path / f'page_{page}.png')).shape[1] > 1500  # four columns
    assert 'comparing: 100 %' in done.stdout and 'page_2.png' in done.stdout
    (tmp_path / 'page_of_mine.png').touch()
    again = run(*made['upernet_swin'], *made['upernet_scalenet_swin'], images[0], '--out', tmp_path, '--device', 'cpu')
    assert again.returncode == 0, again.stderr
    assert sorted(p.name for p in tmp_path.glob('page*')) == ['page_1.png', 'page_of_mine.png']


def test_pictures_that_no_compare_wrote_are_left_alone(tmp_path):
    mine, told = tmp_path / 'page_3.png', tmp_path / 'differences.json'
    assert _drawn_before(tmp_path, told) == []
    mine.touch()
    with pytest.raises(ValueError, match=r'has page_3.png, which this command did not write'):
        _drawn_before(tmp_path, told)
    told.write_text('{"of": "somebody else"}')
    with pytest.raises(ValueError, match=r'has differences.json, page_3.png, which'):
        _drawn_before(tmp_path, told)
    told.write_text('{"pages": ["page_1.png", "page_3.png"]}')
    assert _drawn_before(tmp_path, told) == [mine]


def test_ground_truth_of_a_test_set_without_label_maps_is_told(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'upernet_swin_digits.py')
    cfg.test_dataloader.dataset.data_prefix = dict(img_path='images/validation')
    with pytest.raises(FileNotFoundError, match=r'names no label maps .*--ann FOLDER'):
        truth_of(SimpleNamespace(cfg=cfg, dataset_meta=dict(classes=[])))


@pytest.mark.slow
def test_two_detectors_are_compared_against_a_coco_json(models, tmp_path):
    folder, made = models
    out = tmp_path / 'made' / 'by it'
    coco = folder / 'data/coco'
    ann = coco / 'annotations/instances_val2017.json'
    done = run(
        *made['mask_rcnn_swin'],
        *made['mask_rcnn_scalenet_swin'],
        coco / 'val2017',
        '--ann',
        ann,
        '--out',
        out,
        '--score-thr',
        '0.05',
        '--device',
        'cpu',
    )
    assert done.returncode == 0, done.stderr
    total = json.loads((out / 'differences.json').read_text())['total']
    objects = len(json.loads(ann.read_text())['annotations'])
    for side in 'ab':
        assert total[f'{side}.found'] + total[f'{side}.wrong_class'] + total[f'{side}.missed'] == objects
    assert (out / 'page_2.png').is_file() and not (out / 'page_3.png').exists()


def test_objects_of_classes_that_the_models_do_not_know_are_left_out(tmp_path):
    from scalenet_mm.models.comparison import _boxes

    box = dict(iscrowd=0, area=4, image_id=1)
    said = dict(
        images=[dict(id=1, file_name='a.jpg', height=8, width=8)],
        categories=[dict(id=k, name=name) for k, name in enumerate(('cat', 'dog', 'cow'))],
        annotations=[dict(box, id=k, category_id=k, bbox=[k, 0, 2, 2]) for k in range(3)],
    )
    (tmp_path / 'some.json').write_text(json.dumps(said))
    panel = _boxes(tmp_path / 'some.json', ['cow', 'cat'])(tmp_path / 'a.jpg', (8, 8))
    assert panel.labels.tolist() == [1, 0] and panel.boxes[:, 0].tolist() == [0, 2]
    (tmp_path / 'none.json').write_text(json.dumps(dict(said, categories=[], annotations=[])))
    assert not len(_boxes(tmp_path / 'none.json', ['cow'])(tmp_path / 'a.jpg', (8, 8)).boxes)
    said['annotations'].append(dict(box, id=3, category_id=7, bbox=[3, 0, 2, 2]))  # of no category: mmdet drops it
    (tmp_path / 'some.json').write_text(json.dumps(said))
    assert _boxes(tmp_path / 'some.json', ['cow', 'cat'])(tmp_path / 'a.jpg', (8, 8)).labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match='no category that the models know'):
        _boxes(tmp_path / 'some.json', ['horse'])
    for content in ('', '{}', '[]', '{"annotations": [], "images": [], "categories": [1]}'):
        (tmp_path / 'broken.json').write_text(content)
        with pytest.raises(ValueError, match='broken.json is no COCO json with images, annotations and categories'):
            _boxes(tmp_path / 'broken.json', ['cow'])


def test_an_image_of_another_size_than_its_ground_truth_is_told(tmp_path):
    from scalenet_mm.models.comparison import _boxes

    said = dict(
        images=[dict(id=1, file_name='val/a.jpg', height=8, width=6)],
        categories=[dict(id=1, name='cow')],
        annotations=[dict(id=1, image_id=1, iscrowd=0, area=4, category_id=1, bbox=[0, 0, 2, 2])],
    )
    (tmp_path / 'some.json').write_text(json.dumps(said))
    truth = _boxes(tmp_path / 'some.json', ['cow'])
    assert len(truth(tmp_path / 'val' / 'a.jpg', (8, 6)).boxes) == 1
    with pytest.raises(ValueError, match=r'a.jpg is 6 x 8 .* says 8 x 6.*EXIF'):
        truth(tmp_path / 'val' / 'a.jpg', (6, 8))
    kept = SimpleNamespace(img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=False, label_map=None)
    (tmp_path / 'a.png').touch()
    with pytest.raises(ValueError, match=r'a.jpg is 6 x 8 .* its label map .*a.png says 8 x 6.*EXIF'):
        _label_map(tmp_path / 'a.jpg', (6, 8), tmp_path, kept, lambda results: dict(gt_seg_map=np.zeros((8, 6))))


def test_ground_truth_is_found_by_a_path_as_it_was_typed_in_the_folder_of_the_image(tmp_path, monkeypatch):
    from scalenet_mm.models.comparison import _boxes

    (tmp_path / 'val').mkdir()
    image = dict(id=1, file_name='val/a.jpg', height=8, width=6)
    (tmp_path / 'some.json').write_text(json.dumps(dict(images=[image], categories=[], annotations=[])))
    monkeypatch.chdir(tmp_path / 'val')
    assert not len(_boxes(tmp_path / 'some.json', ['cow'])(Path('a.jpg'), (8, 6)).boxes)


@pytest.mark.parametrize('dataset', ['PascalVOCDataset', 'PascalContextDataset', 'iSAIDDataset', 'DRIVEDataset'])
def test_a_data_set_that_asks_for_its_own_files_is_not_asked_for_a_folder_of_yours(dataset, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'upernet_swin_digits.py')
    of_class = dict(type=dataset, data_root='nowhere', data_prefix=dict(img_path='images', seg_map_path='maps'))
    cfg.test_dataloader.dataset = dict(of_class, pipeline=cfg.test_dataloader.dataset.pipeline)
    if dataset.startswith('Pascal'):
        cfg.test_dataloader.dataset.ann_file = 'val.txt'
    model = SimpleNamespace(cfg=cfg, dataset_meta=dict(classes=[]))
    assert callable(truth_of(model, tmp_path))
    with pytest.raises(FileNotFoundError, match="Config A's test data are not there; give --ann.*nowhere"):
        truth_of(model)


@pytest.mark.slow
def test_what_cannot_be_compared_is_told_without_a_traceback(models, tmp_path):
    folder, made = models
    image = sorted((folder / 'data/coco/val2017').iterdir())[0]
    a, b = made['mask_rcnn_swin'], made['upernet_swin']
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(image.read_bytes()[:20])
    wider = tmp_path / 'wider.py'
    wider.write_text(
        f"_base_ = ['{a[0]}']\ntest_dataloader = dict(dataset=dict(metainfo=dict(classes=list('abcdefghij'))))\n"
    )
    out = tmp_path / 'out'
    for args, message in (
        ([*a, *b, image], 'two detectors or two segmentors, not detection with segmentation'),
        ([*a, *a, broken], 'cannot be read as an image'),
        ([*a, *a, tmp_path / 'none*.jpg'], 'There is no image in'),
        ([*a, wider, a[1], image], "the first that differs is 0: '0' and 'a'"),
        ([*a, *a, image, '--ann', tmp_path / 'no.json'], 'There is no annotation file'),
        ([*a, *a, image, '--out', image.parent], 'is the folder of the images'),
    ):
        done = run('--out', out, '--device', 'cpu', *args)
        assert done.returncode == 2 and message in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not out.exists()


@pytest.mark.parametrize('typed_in', ['/', '.', 'leftImg8bit/val', 'leftImg8bit/val/frankfurt'])
def test_label_maps_are_found_in_the_folders_of_their_images(typed_in, tmp_path, monkeypatch):
    """As Cityscapes keeps them: a folder a city below images and below label maps."""
    image = tmp_path / 'leftImg8bit/val/frankfurt/f_0_leftImg8bit.png'
    file = tmp_path / 'gtFine/val/frankfurt/f_0_gtFine_labelTrainIds.png'
    for place in (image, file):
        place.parent.mkdir(parents=True)
        place.touch()
    kept = dict(img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png')
    dataset = SimpleNamespace(**kept, reduce_zero_label=False, label_map=None)
    read = []
    load = lambda results: read.append(results['seg_map_path']) or dict(gt_seg_map=np.zeros((2, 2)))  # noqa: E731
    monkeypatch.chdir(tmp_path / typed_in)  # a path as it was typed there
    typed = image if typed_in == '/' else image.relative_to(tmp_path / typed_in)
    _label_map(typed, (2, 2), tmp_path / 'gtFine/val', dataset, load)
    assert read == [str(file)]
    with pytest.raises(FileNotFoundError, match='There is no label map'):
        _label_map(image.with_name('f_1_leftImg8bit.png'), (2, 2), tmp_path / 'gtFine/val', dataset, load)
