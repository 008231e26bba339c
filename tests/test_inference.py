"""Results of ``load_model`` and ``predict`` against the libraries' own inference."""

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import perturb, scalenet
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from scalenet_mm.checkpoint import CheckpointError
from scalenet_mm.checkpoint.assemble import export_delta
from scalenet_mm.checkpoint.loading import build_model
from scalenet_mm.commands.predict import main as predict_main
from scalenet_mm.compat import read_config
from scalenet_mm.models.inference import as_json, as_panel, find_images, load_model, predict, read_image
from scalenet_mm.ops import deploy

ROOT = Path(__file__).parents[1]
DEMO = ROOT / 'configs/demo'
CONFIGS = {
    'det': DEMO / 'mask_rcnn_scalenet_swin_digits.py',
    'seg': DEMO / 'upernet_scalenet_swin_digits.py',
    'cls': DEMO / 'scalenet_deit_digits.py',
}


def checkpoint(config: Path | Config, file: Path, seed: int = 0, **meta) -> Path:
    torch.manual_seed(seed)
    model = perturb(build_model(read_config(config)), seed, std=0.05)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), file)
    return file


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict:
    """A checkpoint of each task with weights nowhere trivial, and two images of different sizes."""
    folder = tmp_path_factory.mktemp('inference')
    made = {task: checkpoint(config, folder / f'{task}.pth') for task, config in CONFIGS.items()}
    rng = np.random.default_rng(0)
    for name, shape in (('a.jpg', (128, 128, 3)), ('b.png', (96, 120, 3))):
        coarse = rng.integers(0, 255, (6, 6, 3), np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(coarse, shape[1::-1]))
    return made | {'images': [folder / 'a.jpg', folder / 'b.png']}


def loaded(files: dict, task: str):
    return load_model(CONFIGS[task], files[task], device='cpu')


def test_a_detectors_results_are_those_of_mmdet(files):
    from mmdet.apis import inference_detector

    model = loaded(files, 'det')
    theirs = inference_detector(model, list(map(str, files['images'])))
    for image, result, expected in zip(files['images'], predict(model, files['images']), theirs, strict=True):
        mine, found = result.pred_instances, expected.pred_instances
        assert len(mine) == len(found) > 0
        for key in ('bboxes', 'scores', 'labels', 'masks'):
            assert torch.equal(mine[key], found[key])
        of_pixels = predict(model, cv2.imread(str(image))).pred_instances
        assert torch.equal(of_pixels.bboxes, found.bboxes)
        assert as_panel(result, 0.0).masks.shape[1:] == cv2.imread(str(image)).shape[:2]


def test_a_segmentors_results_are_those_of_mmseg(files):
    from mmseg.apis import inference_model

    model = loaded(files, 'seg')
    images = list(map(str, files['images']))
    for image, mine in zip(images, predict(model, images), strict=True):
        expected = inference_model(model, image).pred_sem_seg.data
        assert torch.equal(mine.pred_sem_seg.data, expected)
        assert len(expected.unique()) > 1
        told = as_json(model, mine)
        assert sum(entry['pixels'] for entry in told) == expected.numel()
        for entry in told:
            assert np.array_equal(coco_mask.decode(entry['mask']), expected[0].numpy() == entry['label'])


def test_a_classifiers_results_are_those_of_mmpretrain(files):
    from mmpretrain.apis import ImageClassificationInferencer

    model = loaded(files, 'cls')
    image = cv2.resize(cv2.imread(str(files['images'][0])), (32, 32))
    (expected,) = ImageClassificationInferencer(model, pretrained=False)(image)
    result = predict(model, image)
    np.testing.assert_array_equal(result.pred_score.numpy(), expected['pred_scores'])
    told = as_json(model, result)
    assert told[0]['class'] == expected['pred_class'] == f'{expected["pred_label"]:02d}'
    assert [t['score'] for t in told] == sorted(expected['pred_scores'].tolist(), reverse=True)[:5]


def test_objects_below_the_threshold_are_left_out(files):
    model = loaded(files, 'det')
    result = predict(model, files['images'][0])
    scores = result.pred_instances.scores
    threshold = float(scores.median())
    told = as_json(model, result, threshold)
    assert len(told) == int((scores >= threshold).sum()) < len(scores)
    first = result.pred_instances[0]
    np.testing.assert_allclose(told[0]['box'], first.bboxes[0].numpy(), atol=0.006)
    assert np.array_equal(coco_mask.decode(told[0]['mask']), first.masks[0].numpy())
    json.dumps(told)


def test_a_base_and_its_delta_give_the_full_checkpoints_results(files, tmp_path):
    full, base = files['cls'], checkpoint(DEMO / 'deit_digits.py', tmp_path / 'base.pth', seed=1)
    export_delta(full, base, tmp_path / 'd.safetensors', CONFIGS['cls'])
    image = cv2.resize(cv2.imread(str(files['images'][0])), (32, 32))
    whole = predict(loaded(files, 'cls'), image).pred_score
    parts = load_model(CONFIGS['cls'], base, tmp_path / 'd.safetensors', device='cpu')
    assert torch.equal(predict(parts, image).pred_score, whole)
    other = checkpoint(DEMO / 'deit_digits.py', tmp_path / 'other.pth', seed=2)
    bare = load_model(CONFIGS['cls'], other, device='cpu')
    assert not torch.equal(predict(bare, image).pred_score, whole)


def test_files_of_other_libraries_load_by_our_rules(tmp_path):
    import timm

    cfg = Config.fromfile(CONFIGS['cls'])
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=96, depth=4, num_heads=4, num_classes=19
    )
    torch.save(perturb(theirs).eval().state_dict(), tmp_path / 'timm.pth')
    cfg.model.backbone.update(scale=dict(times=1, adjust=None), out_type='cls_token')
    model = load_model(cfg, tmp_path / 'timm.pth', device='cpu')
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(image)
        assert torch.allclose(logits, theirs(image), atol=1e-4)


@pytest.mark.parametrize(
    'change, error, message',
    [
        ('no scope', ValueError, 'default_scope=None, which says no task'),
        ('no pipeline', ValueError, 'no test_dataloader.dataset.pipeline'),
        ('other classes', CheckpointError, 'every tensor of the model'),
        ('no file', FileNotFoundError, 'nothing.pth'),
    ],
)
def test_what_cannot_be_loaded_is_told(change, error, message, files):
    cfg, file = Config.fromfile(CONFIGS['cls']), files['cls']
    if change == 'no scope':
        cfg.default_scope = None
    elif change == 'no pipeline':
        del cfg.test_dataloader.dataset.pipeline
    elif change == 'other classes':
        cfg.model.head.num_classes = 7
    else:
        file = file.with_name('nothing.pth')
    with pytest.raises(error, match=message):
        load_model(cfg, file, device='cpu')


def test_classes_are_those_of_the_file_then_of_the_config(tmp_path):
    cfg = Config.fromfile(CONFIGS['cls'])
    named = checkpoint(CONFIGS['cls'], tmp_path / 'm.pth', dataset_meta=dict(CLASSES=list('abcdefghijklmnopqrs')))
    assert load_model(cfg, named, device='cpu').dataset_meta['classes'][0] == 'a'
    plain = checkpoint(CONFIGS['cls'], tmp_path / 'p.pth')
    assert load_model(cfg, plain, device='cpu').dataset_meta['classes'][1] == '01'
    before_mmengine = dict(torch.load(plain, weights_only=True), meta=dict(CLASSES=tuple('abcdefghijklmnopqrs')))
    torch.save(before_mmengine, tmp_path / 'old.pth')
    assert load_model(cfg, tmp_path / 'old.pth', device='cpu').dataset_meta['classes'][18] == 's'
    del cfg.test_dataloader.dataset.metainfo
    cfg.test_dataloader.dataset.type = 'CustomDataset'
    assert load_model(cfg, plain, device='cpu').dataset_meta['classes'] == [str(i) for i in range(19)]
    cfg.test_dataloader.dataset.type = 'ImageNet'  # a class of mmpretrain's that knows a thousand names
    assert load_model(cfg, plain, device='cpu').dataset_meta['classes'] == [str(i) for i in range(19)]
    cfg.test_dataloader.dataset.classes = list('abcdefghijklmnopqrs')
    assert load_model(cfg, plain, device='cpu').dataset_meta['classes'][18] == 's'
    cfg.test_dataloader.dataset.classes = ['a', 'b']  # the head has more
    assert load_model(cfg, plain, device='cpu').dataset_meta['classes'] == ['a', 'b', *map(str, range(2, 19))]
    cfg.test_dataloader.dataset.classes = str(tmp_path / 'names.txt')
    (tmp_path / 'names.txt').write_text(''.join(f'name {i}\n' for i in range(19)))
    assert load_model(cfg, plain, device='cpu').dataset_meta['classes'][18] == 'name 18'
    cfg.model.data_preprocessor = dict(num_classes=1000)  # inherited from ImageNet, for one-hot labels
    assert len(load_model(cfg, plain, device='cpu').dataset_meta['classes']) == 19
    del cfg.test_dataloader.dataset.classes
    cfg.model.head.num_classes = 1000
    thousand = checkpoint(cfg, tmp_path / 't.pth')
    assert load_model(cfg, thousand, device='cpu').dataset_meta['classes'][1] == 'goldfish, Carassius auratus'


def test_a_test_of_several_sets_or_none_prepares_images_as_its_sets_do(files):
    cfg = Config.fromfile(CONFIGS['det'])
    plain = load_model(cfg, files['det'], device='cpu')
    inner = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, inner])
    assert load_model(cfg, files['det'], device='cpu').cfg.test_pipeline == plain.cfg.test_pipeline
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    assert load_model(cfg, files['det'], device='cpu').cfg.test_pipeline == plain.cfg.test_pipeline


def test_images_are_files_folders_and_patterns(tmp_path):
    for name in ('b.jpg', 'a.PNG', 'c.txt'):
        cv2.imwrite(str(tmp_path / f'{name}.png'), np.zeros((4, 4, 3), np.uint8))
        (tmp_path / f'{name}.png').rename(tmp_path / name)
    a, b = tmp_path / 'a.PNG', tmp_path / 'b.jpg'
    assert find_images([tmp_path]) == [a, b]
    assert find_images([tmp_path / '*.jpg', a, b]) == [b, a]  # each once
    for names, error, message in (
        ([tmp_path / '*.gif'], FileNotFoundError, r'no image in .*\*.gif'),
        ([tmp_path / 'd.jpg'], FileNotFoundError, 'no image .*d.jpg'),
    ):
        with pytest.raises(error, match=message):
            find_images(names)


def sixteen_bits(path: Path) -> None:
    cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 257)


def four_bands(path: Path) -> None:
    image = cv2.imread(str(path))
    cv2.imwrite(str(path), np.dstack([image, 255 - image[..., 0]]))


def turned(path: Path) -> None:
    from PIL import Image

    entry = Image.Exif()
    entry[0x0112] = 6  # a quarter turn
    Image.open(path).save(path, exif=entry)


def as_it_is(path: Path) -> None:
    pass


LOADERS = {  # options of LoadImageFromFile, mean, std, channels, and what the files are made to be
    'colour': ({}, 90.0, 60.0, 3, as_it_is),
    'grey': (dict(color_type='grayscale'), 90.0, 60.0, 1, as_it_is),
    '16 bits': (dict(color_type='unchanged', to_float32=True), 23000.0, 15000.0, 3, sixteen_bits),
    '4 bands': (dict(color_type='unchanged'), 90.0, 60.0, 4, four_bands),
    'turned': ({}, 90.0, 60.0, 3, turned),
    'turned, as it lies': (dict(color_type='color_ignore_orientation'), 90.0, 60.0, 3, turned),
    'pillow': (dict(imdecode_backend='pillow'), 90.0, 60.0, 3, turned),
}


@pytest.mark.parametrize('case', LOADERS)
def test_an_image_means_to_predict_what_it_means_to_the_runner(case, tmp_path):
    from mmengine.registry import DATASETS, DefaultScope

    from scalenet_mm.models.inference import as_picture

    loader, mean, std, channels, change = LOADERS[case]
    cfg = Config.fromfile(CONFIGS['cls'])
    cfg.model.data_preprocessor.update(mean=[mean] * channels, std=[std] * channels, to_rgb=channels == 3)
    cfg.model.backbone.in_channels = channels
    rng = np.random.default_rng(0)
    files = [tmp_path / f'{i}.png' for i in range(4)]
    for path in files:
        cv2.imwrite(str(path), cv2.resize(rng.integers(0, 255, (3, 5, 3), np.uint8), (32, 32)))
        change(path)
    (tmp_path / 'list.txt').write_text('\n'.join(f'{p.name} 0' for p in files))
    cfg.test_dataloader.dataset.update(
        type='CustomDataset',
        data_root=str(tmp_path),
        ann_file='list.txt',
        pipeline=[dict(type='LoadImageFromFile', **loader), dict(type='PackInputs')],
    )
    del cfg.test_dataloader.dataset['split']
    model = load_model(cfg, checkpoint(cfg, tmp_path / 'c.pth'), device='cpu')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        images = DATASETS.build(cfg.test_dataloader.dataset)
    scores = []
    for path, sample in zip(files, (images[i] for i in range(4))):
        batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        with torch.no_grad():  # as the Runner's loop
            (expected,) = model.test_step(batch)
        scores.append(expected.pred_score)
        assert torch.equal(predict(model, path).pred_score, scores[-1])
        picture = as_picture(read_image(model, path))
        assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3) and picture.std() > 5
    assert (torch.stack(scores).std(0) > 1e-6).any(), 'each image has scores of its own'
    lies = cv2.imread(str(files[0]), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if channels == 3 and '16' not in case:
        seen = as_picture(read_image(model, files[0]))[..., ::-1]
        turns = change is turned and loader.get('color_type') != 'color_ignore_orientation'
        assert np.array_equal(seen, lies) != turns
    if case in ('grey', '16 bits', '4 bands'):
        with pytest.raises(ValueError, match='cannot stand for; give the path'):
            predict(model, lies)


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=lambda image: f'{image.shape} {image.dtype}',
)
def test_an_array_of_another_shape_or_type_is_refused_before_anything_is_computed(image, files):
    model = loaded(files, 'cls')
    with pytest.raises(ValueError, match=r'array of \(H, W, 3\) uint8 in BGR'):
        predict(model, [np.zeros((32, 32, 3), np.uint8), image])


def test_files_that_are_no_images_are_told_before_anything_is_computed(files, tmp_path):
    model = loaded(files, 'det')
    whole = files['images'][0]
    for name, content in (('half.jpg', whole.read_bytes()[:9]), ('empty.png', b''), ('text.png', b'no image')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f'{name} cannot be read as an image'):
            predict(model, [whole, tmp_path / name])
    with pytest.raises(FileNotFoundError, match='There is no image'):
        predict(model, [whole, tmp_path / 'none.png'])


@pytest.mark.parametrize('kind', ['PIL.Image.Image', 'torch.Tensor', 'builtins.list', 'builtins.NoneType'])
def test_what_is_neither_a_path_nor_an_array_is_refused_in_a_sentence(kind, files):
    from PIL import Image

    picture = Image.new('RGB', (8, 8))
    image = {'list': [[0]], 'Image': picture, 'Tensor': torch.zeros(8, 8, 3), 'NoneType': None}[kind.rpartition('.')[2]]
    with pytest.raises(TypeError, match=f'the path of a file, or an array .* got {kind}; save it'):
        read_image(loaded(files, 'cls'), image)


def test_samples_that_were_read_before_may_come_as_a_list(files):
    model = loaded(files, 'cls')
    expected = [predict(model, i).pred_score for i in files['images']]
    found = predict(model, [read_image(model, i) for i in files['images']])
    assert all(torch.equal(a, b.pred_score) for a, b in zip(expected, found))


def test_a_pipeline_without_a_loading_step_takes_arrays_and_says_nothing_of_files(files):
    cfg = Config.fromfile(CONFIGS['cls'])
    cfg.test_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline[1:]
    model = load_model(cfg, files['cls'], device='cpu')
    image = np.zeros((32, 32, 3), np.uint8)
    assert torch.equal(predict(model, image).pred_score, predict(loaded(files, 'cls'), image).pred_score)
    with pytest.raises(ValueError, match='has no loading step'):
        predict(model, files['images'][0])


def test_the_command_writes_a_picture_and_a_json_file(files, tmp_path):
    command = scalenet('predict', *files['images'])
    command += [str(CONFIGS['det']), str(files['det']), '--score-thr', '0.05', '--device', 'cpu']
    done = subprocess.run([*command, '--out', str(tmp_path / 'r.png')], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / 'r.json').read_text())
    assert list(told) == [str(i) for i in files['images']]
    assert all({'class', 'score', 'box', 'mask'} <= set(entry) for x in told.values() for entry in x)
    for name in ('r_1.png', 'r_2.png'):
        assert cv2.imread(str(tmp_path / name)).shape[1] > 800


def test_a_file_beside_the_picture_that_predict_did_not_write_is_left_alone(files, tmp_path):
    mine, out = tmp_path / 'val.json', tmp_path / 'val.png'
    for content in ('{"images": [{"id": 1}], "categories": []}', '[1]', 'no json', '{"a": 1}'):
        mine.write_text(content)
        with pytest.raises(ValueError, match=r'val.json, beside the picture, is not of this command .* give --json'):
            predict_main([str(files['images'][0]), 'no config', 'none.pth', '--out', str(out)])
        assert mine.read_text() == content
    mine.write_text('{"a.jpg": [{"label": 1, "class": "b", "score": 0.5}], "b.jpg": []}')
    with pytest.raises(Exception, match='no config'):  # it goes on to the next thing
        predict_main([str(files['images'][0]), 'no config', 'none.pth', '--out', str(out)])


@pytest.mark.slow
def test_the_inferencers_take_our_configs_and_checkpoints_unchanged(files):
    from mmdet.apis import DetInferencer
    from mmseg.apis import MMSegInferencer

    image = str(files['images'][0])
    detector = DetInferencer(str(CONFIGS['det']), str(files['det']), device='cpu', show_progress=False)
    deploy(detector.model)  # as `load_model` does, which rounds otherwise
    theirs = detector(image, return_datasamples=True)['predictions'][0].pred_instances
    mine = predict(loaded(files, 'det'), image).pred_instances
    assert torch.equal(theirs.bboxes, mine.bboxes) and len(mine)
    segmentor = MMSegInferencer(str(CONFIGS['seg']), str(files['seg']), device='cpu', show_progress=False)
    deploy(segmentor.model)
    mine = predict(loaded(files, 'seg'), image).pred_sem_seg.data[0]
    assert np.array_equal(segmentor(image)['predictions'], mine.numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_the_gpu_gives_what_the_cpu_gives(files):
    image = files['images'][0]
    model = load_model(CONFIGS['seg'], files['seg'])
    assert next(model.parameters()).is_cuda
    theirs = predict(loaded(files, 'seg'), image)
    np.testing.assert_allclose(predict(model, image).seg_logits.data.cpu(), theirs.seg_logits.data, atol=1e-2)


def test_a_preprocessor_at_the_top_of_a_config_reaches_the_model_as_in_the_runner():
    from scalenet_mm import build
    from scalenet_mm.checkpoint.loading import build_model
    from scalenet_mm.compat import configs_dir, read_config

    cfg = read_config(str(configs_dir() / 'scalenet_deit_t_100e.py'))
    mean = torch.tensor([123.675, 116.28, 103.53])  # ImageNet's, RGB
    for model in (build_model(cfg), build(str(configs_dir() / 'scalenet_deit_t_100e.py'))):
        pixels = model.data_preprocessor({'inputs': mean.flip(0).view(1, 3, 1, 1).expand(1, 3, 8, 8)})
        assert pixels['inputs'].abs().max() < 1e-4
    own = dict(cfg.model, data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', mean=[1.0] * 3, std=[1.0] * 3))
    cfg.model = own
    assert build_model(cfg).data_preprocessor.mean.flatten().tolist() == [1.0] * 3


def test_objects_of_masks_alone_get_the_boxes_around_them():
    """mmdet's SOLO fills its boxes with zeros."""
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:3, 2:7] = masks[1, 4, 0] = True
    found = InstanceData(bboxes=torch.zeros(3, 4), scores=torch.ones(3), labels=torch.zeros(3, dtype=int), masks=masks)
    panel = as_panel(DetDataSample(pred_instances=found))
    assert panel.boxes.tolist() == [[2, 1, 7, 3], [0, 4, 1, 5], [0, 0, 0, 0]]
    assert as_panel(DetDataSample(pred_instances=found[:0])).boxes.shape == (0, 4)
