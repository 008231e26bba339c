"""The embedded demo data set: what is drawn, what is written, and what other libraries read."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import decoded, scalenet

from scalenet_mm.experiments.data import (
    ADE_CLASSES,
    CLASSES,
    LAYOUTS,
    SUM_CLASSES,
    SceneStyle,
    make_demo_data,
    render_scene,
)
from scalenet_mm.experiments.data import scenes as scenes_module
from scalenet_mm.experiments.data.dataset_layouts import addition_digits, encode_rle
from scalenet_mm.experiments.data.digits import digit_set

REPO = Path(__file__).resolve().parents[1]
TRAIN, VAL = 30, 19  # at least one scene of each sum
# Runs code with scalenet_mm.experiments.data alone: the package's own __init__ is replaced by an empty one.
DATA_ALONE = f"""
import sys, types
package = types.ModuleType('scalenet_mm')
package.__path__ = [{str(REPO / 'scalenet_mm')!r}]
sys.modules['scalenet_mm'] = package
"""


def run_alone(code: str, *, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', DATA_ALONE + code], capture_output=True, text=True, check=check)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> dict[str, Path]:
    return make_demo_data(tmp_path_factory.mktemp('demo'), train=TRAIN, val=VAL, seed=3)


# What is drawn


def test_train_and_val_digits_are_disjoint_stratified_and_together_all_1797():
    from sklearn.datasets import load_digits

    labels = load_digits().target
    train, val = digit_set('train'), digit_set('val')
    assert (len(train.indices), len(val.indices)) == (1400, 397)
    assert sorted([*train.indices, *val.indices]) == list(range(1797))
    for digits in (train, val):
        np.testing.assert_array_equal(labels[digits.indices], digits.labels)
        share = np.bincount(digits.labels) / np.bincount(labels)
        assert np.ptp(share) < 0.012  # one digit of the smallest class (174) is 0.006


def test_enlarged_glyphs_show_the_digits_their_indices_name():
    from sklearn.datasets import load_digits

    images = load_digits().images
    digits = digit_set('val')
    for row in range(0, 397, 20):
        frame = cv2.resize(digits.glyphs[row], (10, 10), interpolation=cv2.INTER_AREA)
        own = images[digits.indices[row]].ravel()
        assert np.corrcoef(frame[1:-1, 1:-1].ravel(), own)[0, 1] > 0.9


def test_a_scene_uses_the_digits_of_its_own_split_only(monkeypatch):
    asked = []
    monkeypatch.setattr(scenes_module, 'digit_set', lambda split: asked.append(split) or digit_set(split))
    render_scene(0, 'train', 0, 64)
    render_scene(0, 'val', 0, 64)
    assert asked == ['train', 'val']


def test_a_scene_depends_on_seed_split_and_index_and_not_on_what_was_drawn_before():
    first, instances = render_scene(5, 'val', 7, 96)
    for index in range(3):
        render_scene(5, 'val', index, 96)
    again, same = render_scene(5, 'val', 7, 96)
    np.testing.assert_array_equal(first, again)
    assert [i.bbox for i in instances] == [i.bbox for i in same]
    for other in ((6, 'val', 7), (5, 'train', 7), (5, 'val', 8)):
        assert not np.array_equal(first, render_scene(*other, 96)[0])


def test_masks_are_visible_apart_from_each_other_and_tightly_boxed():
    style = SceneStyle()
    for index in range(40):
        image, instances = render_scene(1, 'train', index, 128)
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert style.digits[0] <= len(instances) <= style.digits[1]
        assert sum(instance.mask.astype(int) for instance in instances).max() == 1
        for instance in instances:
            ys, xs = np.nonzero(instance.mask)
            x, y, w, h = instance.bbox
            assert (x, y) == (xs.min(), ys.min())
            assert (x + w - 1, y + h - 1) == (xs.max(), ys.max())


def test_a_digit_that_would_be_covered_too_much_is_not_placed_there():
    layout = scenes_module._Layout(40, SceneStyle(max_covered=0.2, max_box_iou=1.0))
    assert layout.try_place(1, np.ones((10, 10)), 0, 0)
    assert not layout.try_place(2, np.ones((10, 10)), 7, 0)  # hides 30 of 100 pixels
    assert layout.try_place(2, np.ones((10, 10)), 8, 0)  # hides 20
    assert [mask.sum() for mask in layout.visible] == [80, 100]
    assert not layout.try_place(3, np.ones((10, 2)), 0, 0)  # 40 of 100 hidden by both together


def test_digits_stand_out_from_what_surrounds_their_masks():
    """Shifted, flipped or transposed masks fail this: it compares them with the picture."""
    gaps = []
    for index in range(30):
        image, instances = render_scene(2, 'val', index, 128)
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
        taken = cv2.dilate(np.any([i.mask for i in instances], axis=0).astype(np.uint8), np.ones((5, 5)))
        for instance in instances:
            near = cv2.dilate(instance.mask.astype(np.uint8), np.ones((13, 13)))
            ring = (near > 0) & (taken == 0)
            gaps.append(abs(np.median(luma[instance.mask]) - np.median(luma[ring])))
    assert np.quantile(gaps, 0.05) > 50  # drawn with 80 against the mean of what lies below


def test_rotated_digits_are_not_cut_by_their_canvas():
    rng = np.random.default_rng(0)
    for glyph in digit_set('train').glyphs[:200]:
        alpha = scenes_module._warp_glyph(rng, glyph, 240.0, 45.0)
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert border.max() < 0.3


def test_a_classification_scene_holds_the_digits_whose_sum_is_its_label(demo):
    for split in ('train', 'val'):
        for index in (0, 13, 18, 19 * 40 + 5):
            digits = addition_digits(0, split, index)
            assert len(digits) == 2 and sum(digits) == index % 19
            _, instances = LAYOUTS['imagenet'].scene(0, split, index, 32)
            assert [instance.label for instance in instances] == digits
    names = (demo['imagenet'] / 'meta' / 'train.txt').read_text().split()[::2]
    for index, name in enumerate(names):
        assert name == f'{sum(addition_digits(3, "train", index)):02d}/train_{index:06d}.png'


def test_all_ways_to_make_a_sum_are_drawn_alike():
    drawn = Counter(tuple(addition_digits(0, 'train', 2 + 19 * i)) for i in range(600))
    assert set(drawn) == {(0, 2), (1, 1), (2, 0)}
    assert min(drawn.values()) > 150  # 200 of each expected, standard deviation 12


def test_digits_on_a_grid_lie_in_different_cells_and_light_ones_on_dark():
    style = LAYOUTS['imagenet'].style
    for index in range(30):
        image, instances = LAYOUTS['imagenet'].scene(0, 'val', index, 64)
        cells = [
            (int(style.grid * (y + h / 2) / 64), int(style.grid * (x + w / 2) / 64))
            for x, y, w, h in (instance.bbox for instance in instances)
        ]
        assert len(set(cells)) == len(instances)
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        below = np.median(luma[~np.any([i.mask for i in instances], axis=0)])
        assert all(np.median(luma[instance.mask]) > below + 40 for instance in instances)
    rng, grey = np.random.default_rng(0), np.full((4, 3), 128.0)
    picked = [scenes_module._pick_colour(rng, grey, [], True) for _ in range(50)]
    assert min(picked, key=lambda colour: colour @ scenes_module.LUMA) @ scenes_module.LUMA > 200


def test_scenes_that_cannot_be_drawn_legibly_are_refused():
    with pytest.raises(ValueError, match='at least 24 pixels'):
        render_scene(0, 'train', 0, 16)
    with pytest.raises(ValueError, match='5 digits need as many cells'):
        render_scene(0, 'train', 0, 32, SceneStyle(grid=2), labels=[1] * 5)
    with pytest.raises(ValueError, match='90 digits find no room'):
        render_scene(0, 'train', 0, 24, labels=[1] * 90)
    with pytest.raises(ValueError, match="got 'test'"):
        render_scene(0, 'test', 0, 64)


def test_run_lengths_agree_with_pycocotools_and_decode_to_the_mask():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    corner = np.zeros((7, 5), bool)
    corner[0, 0] = True
    for mask in (rng.random((9, 13)) > 0.5, corner, ~corner, np.ones((3, 4), bool)):
        rle = encode_rle(mask)
        packed = coco_mask.frPyObjects(rle, *rle['size'])
        np.testing.assert_array_equal(coco_mask.decode(packed).astype(bool), mask)


# What is written


def test_the_files_are_the_same_for_any_number_of_workers(demo, tmp_path):
    cv2.setNumThreads(4)  # OpenCV's threads must not hang the forked workers
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.float32), (0, 0), 5)
    made = make_demo_data(tmp_path, train=TRAIN, val=VAL, seed=3, workers=3)
    for layout, folder in made.items():
        assert contents(folder) == contents(demo[layout])


def test_another_seed_draws_other_scenes(demo, tmp_path):
    other = make_demo_data(tmp_path, ['ade'], train=2, val=1, seed=4)['ade']
    name = 'images/training/ADE_train_00000001.jpg'
    assert (other / name).read_bytes() != (demo['ade'] / name).read_bytes()


def test_classes_are_balanced(tmp_path):
    made = make_demo_data(tmp_path, ['imagenet', 'coco'], train=380, val=38, size=48)
    for split, count in (('train', 20), ('val', 2)):
        folders = made['imagenet'] / split
        found = {p.name: len(list(p.iterdir())) for p in folders.iterdir()}
        assert found == dict.fromkeys(SUM_CLASSES, count)
    path = made['coco'] / 'annotations' / 'instances_train2017.json'
    found = [ann['category_id'] for ann in json.loads(path.read_text())['annotations']]
    counts = np.bincount(found, minlength=11)[1:]
    # About 266 of each, standard deviation 16.
    assert counts.min() > 0.7 * counts.mean() and counts.max() < 1.3 * counts.mean()


def test_coco_files_load_in_pycocotools_and_boxes_areas_and_masks_agree(demo):
    from pycocotools.coco import COCO

    for split, count in (('train', TRAIN), ('val', VAL)):
        coco = COCO(demo['coco'] / 'annotations' / f'instances_{split}2017.json')
        assert len(coco.imgs) == count and len(coco.cats) == 10
        for image_id, entry in coco.imgs.items():
            image = cv2.imread(str(demo['coco'] / f'{split}2017' / entry['file_name']))
            assert image.shape[:2] == (entry['height'], entry['width'])
            anns = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
            masks = [coco.annToMask(ann) for ann in anns]
            assert sum(mask.astype(int) for mask in masks).max() == 1
            for ann, mask in zip(anns, masks):
                ys, xs = np.nonzero(mask)
                box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
                assert ann['bbox'] == box and ann['area'] == len(xs) and ann['id'] > 0


def test_coco_and_ade_describe_the_same_scenes_pixel_for_pixel(demo):
    content = json.loads((demo['coco'] / 'annotations' / 'instances_val2017.json').read_text())
    for entry in content['images']:
        expected = np.ones((entry['height'], entry['width']), np.uint8)
        for ann in content['annotations']:
            if ann['image_id'] == entry['id']:
                digit = int(content['categories'][ann['category_id'] - 1]['name'])
                expected[decoded(ann['segmentation'])] = digit + 2
        path = demo['ade'] / 'annotations' / 'validation' / f'ADE_val_{entry["id"]:08d}.png'
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)


# What other libraries read


def test_mmdet_loads_the_coco_layout_with_masks(demo):
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    dataset = CocoDataset(
        data_root=str(demo['coco']),
        ann_file='annotations/instances_train2017.json',
        data_prefix={'img': 'train2017/'},
        metainfo={'classes': CLASSES},
        pipeline=[LoadImageFromFile(), LoadAnnotations(with_bbox=True, with_mask=True)],
    )
    assert len(dataset) == TRAIN
    results = dataset[0]
    assert results['img'].shape == (96, 96, 3)
    masks = results['gt_masks'].to_ndarray()
    _, instances = LAYOUTS['coco'].scene(3, 'train', 0, 96)
    np.testing.assert_array_equal(masks.astype(bool), [i.mask for i in instances])
    assert results['gt_bboxes_labels'].tolist() == [i.label for i in instances]


def test_mmseg_loads_the_ade_layout_and_background_becomes_class_0(demo):
    from mmcv.transforms import LoadImageFromFile
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    dataset = BaseSegDataset(
        data_root=str(demo['ade']),
        data_prefix={'img_path': 'images/validation', 'seg_map_path': 'annotations/validation'},
        img_suffix='.jpg',
        seg_map_suffix='.png',
        reduce_zero_label=True,
        metainfo={'classes': ADE_CLASSES},
        pipeline=[LoadImageFromFile(), LoadAnnotations()],
    )
    assert len(dataset) == VAL
    labels = dataset[0]['gt_seg_map']
    _, instances = LAYOUTS['ade'].scene(3, 'val', 0, 96)
    expected = np.zeros((96, 96), int)
    for instance in instances:
        expected[instance.mask] = 1 + instance.label
    np.testing.assert_array_equal(labels, expected)
    assert ADE_CLASSES[labels[instances[0].mask][0]] == CLASSES[instances[0].label]


def test_mmpretrain_loads_the_imagenet_layout_by_list_and_by_folder(demo):
    from mmpretrain.datasets import CustomDataset, ImageNet

    root = str(demo['imagenet'])
    for split, count in (('train', TRAIN), ('val', VAL)):
        listed = ImageNet(data_root=root, split=split, metainfo={'classes': SUM_CLASSES})
        found = CustomDataset(data_root=root, data_prefix=split)
        assert len(listed) == len(found) == count
        assert tuple(found.CLASSES) == SUM_CLASSES
        labels = {Path(found[i]['img_path']).name: found[i]['gt_label'] for i in range(count)}
        for i in range(count):
            path = Path(listed[i]['img_path'])
            assert path.is_file() and labels[path.name] == listed[i]['gt_label']


# Made once, whole or not at all


def test_a_second_call_verifies_and_writes_nothing(demo):
    root = demo['coco'].parent
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*') if p.is_file()}
    made = make_demo_data(root, train=TRAIN, val=VAL, seed=3, workers=2)
    before.pop(root / '.demo_data.lock')
    assert made == demo
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())


def test_other_parameters_in_the_same_folder_are_refused_until_overwrite(tmp_path):
    make_demo_data(tmp_path, ['ade'], train=3, val=2)
    with pytest.raises(
        FileExistsError, match=r'train is 3 there and 4 here.*demo-data \S+ --layout \w+ --train 4 --val .* --overwrite'
    ):
        make_demo_data(tmp_path, ['ade'], train=4, val=2)
    made = make_demo_data(tmp_path, ['ade'], train=4, val=2, overwrite=True)['ade']
    assert len(list((made / 'images' / 'training').iterdir())) == 4


@pytest.mark.parametrize('damage', ['changed', 'removed', 'added'])
def test_a_folder_that_was_tampered_with_is_noticed(tmp_path, damage):
    made = make_demo_data(tmp_path, ['ade'], train=3, val=2)['ade']
    path = made / 'annotations' / 'training' / 'ADE_train_00000002.png'
    if damage == 'changed':
        path.write_bytes(path.read_bytes()[:-1] + b'x')
    elif damage == 'removed':
        path.unlink()
    else:
        path.with_name('new.png').write_bytes(b'')
    with pytest.raises(ValueError, match='changed since it was made'):
        make_demo_data(tmp_path, ['ade'], train=3, val=2)


def test_a_foreign_folder_is_left_alone_even_with_overwrite(tmp_path):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco' / 'mine.txt').write_text('keep')
    with pytest.raises(FileExistsError, match='no manifest.json of a demo data set'):
        make_demo_data(tmp_path, ['coco'], train=2, val=1, overwrite=True)
    assert (tmp_path / 'coco' / 'mine.txt').read_text() == 'keep'
    for manifest in ('{"name": "an app"}', '[]', 'no json', '{"parameters": {}}'):
        (tmp_path / 'coco' / 'manifest.json').write_text(manifest)
        with pytest.raises(FileExistsError, match='no manifest.json of a demo data set, so it is left alone'):
            make_demo_data(tmp_path, ['coco'], train=2, val=1, overwrite=True)
    assert (tmp_path / 'coco' / 'mine.txt').read_text() == 'keep'


def test_unknown_layouts_and_empty_sets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got \\['voc'\\]"):
        make_demo_data(tmp_path, ['voc'])
    with pytest.raises(ValueError, match='val must be at least 1, got 0'):
        make_demo_data(tmp_path, ['ade'], val=0)


def test_a_killed_run_leaves_no_half_made_folder_and_no_process(tmp_path):
    call = f"""
from scalenet_mm.experiments.data import make_demo_data
make_demo_data({str(tmp_path)!r}, ['coco'], train=20000, val=1, workers=2)
"""
    process = subprocess.Popen([sys.executable, '-c', DATA_ALONE + call])
    try:
        images = tmp_path / '.coco.partial' / 'train2017'
        deadline = time.monotonic() + 60
        while len(list(images.glob('*.jpg'))) < 20:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        listing = Path(f'/proc/{process.pid}/task/{process.pid}/children')
        children = listing.read_text().split()
    finally:
        process.kill()  # SIGKILL: nothing of ours runs any more in that process
        process.wait()
    assert len(children) == 2
    assert not (tmp_path / 'coco').exists()
    made = make_demo_data(tmp_path, ['coco'], train=3, val=1)['coco']  # waits for the lock
    assert len(list((made / 'train2017').iterdir())) == 3
    assert not (tmp_path / '.coco.partial').exists()
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < deadline, f'workers {children} outlived their parent'
        time.sleep(0.1)


def _alive(pid: str) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_error_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def stop(self, done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr('scalenet_mm.progress.Progress.update', stop)
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(tmp_path, ['ade'], train=5, val=1, progress=True)
    assert [p.name for p in tmp_path.iterdir()] == ['.demo_data.lock']


# The command and the imports


@pytest.mark.slow
def test_the_command_makes_the_layouts_draws_a_preview_and_names_the_way_out(tmp_path):
    def command(*options: str) -> subprocess.CompletedProcess:
        words = scalenet('experiment', 'demo-data', tmp_path / 'demo', *options)
        return subprocess.run(words, capture_output=True, text=True, cwd=REPO)

    picture = tmp_path / 'preview.png'
    small = ('--layout', 'coco', 'ade', '--train', '4', '--val', '2', '--size', '64')
    made = command(*small, '--preview', str(picture), '--workers', '2')
    assert made.returncode == 0, made.stderr
    assert 'coco: 100 %, scene 6 of 6, 0:00:00 left' in made.stdout
    assert sorted(p.name for p in (tmp_path / 'demo').glob('[!.]*')) == ['ade', 'coco']
    assert cv2.imread(str(picture)).std() > 30
    again = command(*small)
    assert again.returncode == 0 and 'scene' not in again.stdout
    other = command(*small, '--seed', '1')
    assert other.returncode == 2
    assert 'seed is 0 there and 1 here' in other.stderr and 'Traceback' not in other.stderr


def test_the_data_package_imports_neither_torch_nor_scikit_learn():
    run_alone(
        'import scalenet_mm.experiments.data\n'
        'loaded = {"torch", "sklearn", "mmengine", "matplotlib"} & set(sys.modules)\n'
        'assert not loaded, loaded'
    )


@pytest.mark.slow
def test_importing_scalenet_mm_does_not_import_the_data_package():
    code = 'import sys, scalenet_mm; assert "scalenet_mm.experiments.data" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=REPO)


def test_a_missing_scikit_learn_is_told_with_the_remedy(tmp_path):
    done = run_alone(
        'sys.modules["sklearn"] = None\n'
        'from scalenet_mm.experiments.data import make_demo_data\n'
        f'make_demo_data({str(tmp_path)!r}, ["ade"])',
        check=False,
    )
    assert done.returncode == 1 and 'pip install scikit-learn' in done.stderr
