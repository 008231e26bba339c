"""The quickstart as a newcomer calls it, on a few scenes; what it reaches is in docs/quickstart.md."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import decoded, scalenet
from mmengine.registry import DATASETS, init_default_scope

from scalenet_mm.experiments.commands import make_sources, quickstart
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.experiments.quickstart.quickstart_page import choose, notes
from scalenet_mm.experiments.quickstart.quickstart_runs import Job, _minutes, quiet
from scalenet_mm.experiments.quickstart.quickstart_tasks import SOURCES, TASKS
from scalenet_mm.models.side_by_side import Panel

ROOT = Path(__file__).parents[1]

ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}
SCENES = {'det': (16, 4), 'seg': (16, 4), 'cls': (266, 57)}


def command(task: str, folder: Path, *args) -> list[str]:
    scenes = map(str, SCENES[task])
    places = ['--work-dir', str(folder / 'work'), '--data', str(folder / 'data')]
    return scalenet('experiment', 'quickstart', '--task', task, *places, '--scenes', *scenes, *args)


def call(task: str, folder: Path, *args) -> subprocess.CompletedProcess:
    return subprocess.run(command(task, folder, *args), capture_output=True, text=True, cwd=ROOT, env=ENV)


@pytest.fixture(scope='module')
def detection(tmp_path_factory):
    """The folder, and the same call twice."""
    folder = tmp_path_factory.mktemp('quickstart')
    first = call('det', folder, '--epochs', '1')
    trained = {p: p.stat().st_mtime_ns for p in folder.rglob('epoch_*.pth')}
    return folder, first, trained, call('det', folder, '--epochs', '1')


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again(detection):
    folder, first, trained, again = detection
    assert first.returncode == again.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    assert {p.relative_to(folder / 'work/det') for p in trained} == {
        Path('control/epoch_1.pth'),
        Path('scalenet/epoch_1.pth'),
    }
    assert {p: p.stat().st_mtime_ns for p in trained} == trained
    assert '  scalenet: 100 %' in first.stdout and '  scalenet: ' not in again.stdout
    assert first.stdout.split('Result')[1].splitlines()[:8] == again.stdout.split('Result')[1].splitlines()[:8]


def test_the_table_has_the_four_models_with_what_they_cost(detection):
    folder, _, _, done = detection
    source, control, untrained, scaled = json.loads((folder / 'work/det/result.json').read_text())
    for row in (source, control, untrained, scaled):
        assert list(row['metrics']) == ['box AP', 'mask AP'] and row['name'] in done.stdout
        gain = row['metrics']['box AP'] - source['metrics']['box AP']
        assert row is source or f'{gain:+.1f}' in next(x for x in done.stdout.splitlines() if x.startswith(row['name']))
    assert source['params'] == control['params'] == control['trainable']
    assert (source['trainable'], source['delta'], untrained['delta'], untrained['trainable']) == (0, 0, 0, 0)
    assert 4 * control['params'] < control['delta'] < 1.05 * 4 * control['params'] + 65_536
    assert 4 * scaled['trainable'] <= scaled['delta'] < 1.05 * 4 * scaled['trainable'] + 65_536
    assert source['params'] < scaled['params'] == untrained['params'] < 1.1 * source['params']
    assert scaled['gflops'] > 1.2 * source['gflops'] and scaled['minutes'] > 0
    assert 'backbone alone' in done.stdout and 'minutes in all' in done.stdout


def test_a_run_that_was_killed_after_its_last_checkpoint_is_whole(detection):
    folder, *_ = detection
    clock = folder / 'work/det/scalenet/minutes.json'
    told, begun = float(clock.read_text()), clock.with_name('settings.json').stat().st_mtime
    clock.write_text('0.0')  # as it is when a run begins
    os.utime(clock, (begun, begun))
    again = call('det', folder, '--epochs', '1')
    assert again.returncode == 0, again.stderr
    minutes = json.loads((folder / 'work/det/result.json').read_text())[-1]['minutes']
    assert told / 2 < minutes < told + 1


def test_minutes_of_a_run_that_was_killed_go_up_to_its_last_checkpoint(tmp_path):
    clock, last = tmp_path / 'minutes.json', tmp_path / 'iter_9.pth'
    clock.write_text('2.0')
    for written, minutes in ((1060, 3.0), (900, 2.0)):  # killed a minute after it began; stopped, with its time told
        last.touch()
        os.utime(clock, (1000, 1000))
        os.utime(last, (written, written))
        assert _minutes(clock, last) == pytest.approx(minutes)
    assert _minutes(clock, None) == _minutes(tmp_path / 'not there', last) == 0


def test_the_same_data_spelt_otherwise_are_the_same_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    for data in ('qd', tmp_path / 'qd'):
        job = Job(TASKS['det'], tmp_path / 'work', Path(data), 1, (16, 4))
        cfg = job.config(TASKS['det'].source, 'source', 1)
        unit, folder = job.task.unit, Path(cfg.work_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'{unit}_{cfg.train_cfg[f"max_{unit}s"]}.pth').touch()  # done
        made.append(job.train(cfg))
    assert made[0] == made[1]


def test_the_note_says_how_much_the_draw_of_these_images_is_worth():
    assert '1,960 images: +- 2.' in notes(TASKS['cls'], 1960, 0) and '57 images: +- 13.' in notes(TASKS['cls'], 57, 0)
    assert 'COCO AP' in notes(TASKS['det'], 57, 0)


def test_the_picture_has_a_column_for_truth_before_and_after(detection):
    height, width = cv2.imread(str(detection[0] / 'work/det/result.png')).shape[:2]
    assert width > 1000 and height > width, 'three columns of four images'


def test_the_picture_shows_better_and_worse_scenes_as_often_as_there_are():
    gains = [0.0] * 1000
    gains[10:130] = [1.0] * 120
    gains[500:540] = [-0.5] * 40
    chosen, said = choose(gains)
    assert [gains[i] for i in chosen] == [1.0, 1.0, 1.0, -0.5] and len({*chosen}) == 4
    assert '120 of 1000' in said and 'worse on 40' in said
    flipped, _ = choose([-g for g in gains])
    assert sorted(gains[i] for i in flipped) == [-0.5, 1.0, 1.0, 1.0]
    one_worse, _ = choose([1.0] * 99 + [-1.0])
    assert 99 in one_worse and len(one_worse) == 4, 'what got worse is not left out where it is rare'
    assert choose([0.0, 0.0]) == ([0, 1], 'alike on all 2 scenes')
    assert choose([0.0, 1.0])[0] == [1]


def test_how_much_of_a_scene_is_right():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], float)
    truth = Panel(boxes=boxes, labels=np.array([1, 2, 3]))
    right = TASKS['det'].right
    assert right(truth, truth) == 1
    assert right(truth, Panel(boxes=boxes, labels=np.array([1, 2, 4]))) == pytest.approx(2 / 3)
    assert right(truth, Panel(boxes=boxes[:1], labels=np.array([1]))) == 0.5
    pixels = np.full((2, 4), 255)
    pixels[0] = 1
    half = pixels.copy()
    half[0, :2] = 255
    right = TASKS['seg'].right
    assert right(Panel(semantic=pixels), Panel(semantic=pixels)) == 1
    assert right(Panel(semantic=pixels), Panel(semantic=half)) == 0.5
    seven, eight = (Panel(labels=np.array([k])) for k in (7, 8))
    assert (TASKS['cls'].right(seven, seven), TASKS['cls'].right(seven, eight)) == (1, 0)


@pytest.mark.parametrize('other', [dict(epochs=3), dict(seed=2), dict(scenes=(8, 4))])
def test_other_settings_are_refused_and_leave_the_run_alone(detection, other):
    folder = detection[0]
    before = {p: p.stat().st_mtime_ns for p in (folder / 'work').rglob('*')}
    same = dict(epochs=1, scenes=SCENES['det'], seed=1)
    job = Job(TASKS['det'], folder / 'work' / 'det', folder / 'data', **{**same, **other})
    with pytest.raises(SystemExit, match='holds a run with other settings'):
        job.train(job.config(job.task.scaled, 'scalenet', job.epochs, str(job.task.weights)))
    assert {p: p.stat().st_mtime_ns for p in (folder / 'work').rglob('*')} == before


def test_a_run_is_the_same_wherever_its_folders_lie(detection, monkeypatch):
    """After the checkout, where the sources are, was renamed."""
    folder = detection[0]
    job = Job(TASKS['det'], folder / 'work' / 'det', folder / 'data', 1, SCENES['det'], 1)
    cfg = job.config(job.task.scaled, 'scalenet', job.epochs, str(job.task.weights))
    settings = folder / 'work' / 'det' / 'scalenet' / 'settings.json'
    kept = settings.read_text()
    assert str(folder) not in kept and str(job.task.weights.parent) not in kept
    settings.write_text(kept.replace('SOURCES', json.dumps(str(job.task.weights.parent))[1:-1]))  # an older version's
    assert Path(job.train(cfg)[0]).is_file()
    settings.write_text(kept)


def test_fewer_scenes_than_a_batch_are_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(SystemExit, match='100 scenes for training are no whole batch: --scenes 128 VAL'):
        Job(TASKS['cls'], tmp_path / 'work', tmp_path / 'data', scenes=(100, 50))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def few_scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    make_demo_data(folder, ['coco', 'ade'], train=16, val=4)
    return folder


def loaded(task: str, data: Path, tmp_path: Path):
    """A validation image as the evaluation reads it."""
    job = Job(TASKS[task], tmp_path, data, scenes=SCENES[task])
    cfg = job.config(job.task.source, 'source', 1)
    init_default_scope(cfg.default_scope)
    return DATASETS.build(cfg.test_dataloader.dataset)[1]['data_samples']


def test_the_ground_truth_of_a_detection_is_that_of_the_annotation_file(few_scenes, tmp_path):
    sample = loaded('det', few_scenes, tmp_path)
    sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor  # as the data preprocessor does
    sample.pred_instances = sample.gt_instances
    truth, _ = TASKS['det'].read(sample)
    content = json.loads((few_scenes / 'coco/annotations/instances_val2017.json').read_text())
    (image,) = (i for i in content['images'] if i['file_name'] == Path(sample.img_path).name)
    annotations = [a for a in content['annotations'] if a['image_id'] == image['id']]
    xywh = np.array([a['bbox'] for a in annotations])
    np.testing.assert_allclose(truth.boxes, np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]))
    assert truth.labels.tolist() == [a['category_id'] - 1 for a in annotations]
    np.testing.assert_array_equal(truth.masks, np.stack([decoded(a['segmentation']) for a in annotations]))


def test_detections_with_a_score_below_the_threshold_are_not_drawn(few_scenes, tmp_path):
    import torch

    sample = loaded('det', few_scenes, tmp_path)
    sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor
    n = len(sample.gt_instances)
    predicted = sample.gt_instances.clone()
    predicted.masks = torch.from_numpy(predicted.masks.masks)
    predicted.scores = torch.tensor([0.9, 0.29, *[0.5] * (n - 2)])
    sample.pred_instances = predicted
    _, shown = TASKS['det'].read(sample)
    assert len(shown.boxes) == len(shown.masks) == len(shown.labels) == n - 1
    np.testing.assert_allclose(shown.scores, [0.9, *[0.5] * (n - 2)])


def test_the_ground_truth_of_a_segmentation_is_that_of_the_label_file(few_scenes, tmp_path):
    sample = loaded('seg', few_scenes, tmp_path)
    sample.pred_sem_seg = sample.gt_sem_seg
    truth, _ = TASKS['seg'].read(sample)
    file = few_scenes / 'ade/annotations/validation' / f'{Path(sample.img_path).stem}.png'
    in_file = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)  # 1 background, d + 2 digit d
    names = np.array(['', 'background', *TASKS['seg'].classes[1:]])[in_file]
    digits = in_file > 1
    assert set(truth.semantic[~digits]) == {255}, 'the background is not drawn'
    drawn = np.array(TASKS['seg'].classes)[truth.semantic[digits]]
    np.testing.assert_array_equal(drawn, names[digits])


def test_the_sources_are_those_of_their_card_and_small():
    card, files = json.loads((SOURCES / 'card.json').read_text()), [task.weights for task in TASKS.values()]
    for name, task in TASKS.items():
        assert hashlib.sha256(task.weights.read_bytes()).hexdigest() == card[name]['SHA-256']
    assert sum(f.stat().st_size for f in files) < 3e6
    assert {f.name for f in SOURCES.glob('*.safetensors')} == {f.name for f in files}


@pytest.mark.slow
def test_a_source_is_trained_on_its_own_scenes_and_tried_on_the_quickstarts(tmp_path):
    task = dataclasses.replace(TASKS['cls'], scenes=266, source_scenes=532)
    made = make_sources.make(task, tmp_path / 'work', tmp_path / 'data', tmp_path / 'out')
    drawn = {
        run: json.loads((tmp_path / 'data' / run / 'imagenet/manifest.json').read_text())
        for run in ('source', 'quickstart')
    }
    assert made['scenes'] == '532' and drawn['source']['parameters']['train'] == 532
    assert drawn['quickstart']['parameters']['train'] == 266
    optimizer = [
        torch.load(next((tmp_path / 'work' / run).glob('epoch_*.pth')), weights_only=False)['optimizer']
        for run in ('source', 'control')
    ]
    steps = [next(iter(o['state'].values()))['step'] for o in optimizer]
    assert steps == [16 * (532 // 128), 5 * (266 // 128)]
    file = tmp_path / 'out' / made['file']
    assert hashlib.sha256(file.read_bytes()).hexdigest() == made['SHA-256']
    for part in ('train', 'val'):  # the first scenes of both are the same: a source never saw what it is evaluated on
        few, many = (tmp_path / 'data' / run / 'imagenet' / part for run in ('quickstart', 'source'))
        names = {p.relative_to(few): p for p in few.rglob('*.png')}
        assert len(names) == {'train': 266, 'val': 1960}[part]
        assert all((many / name).read_bytes() == p.read_bytes() for name, p in names.items())


@pytest.mark.slow
def test_learning_rates_are_those_that_are_asked_for(tmp_path):
    done = call('cls', tmp_path, '--epochs', '1', '--lr', '0.03125', '--control-lr', '0.0625')
    assert done.returncode == 0, done.stderr[-2000:]
    rates = {}
    for run in ('scalenet', 'control'):
        saved = torch.load(tmp_path / 'work/cls' / run / 'epoch_1.pth', weights_only=False)
        rates[run] = {group['initial_lr'] for group in saved['optimizer']['param_groups']}
    assert rates == {'scalenet': {0.03125}, 'control': {0.0625}}


@pytest.mark.parametrize('task', TASKS)
def test_an_epoch_is_one_pass_over_the_scenes_and_the_data_moves(task, tmp_path):
    job = Job(TASKS[task], tmp_path, tmp_path / 'elsewhere')
    assert job.epochs < job.epochs_of(job.task.source), 'less training than the source had'
    cfg = job.config(job.task.source, 'source', 2)
    per_epoch = 1 if job.task.unit == 'epoch' else job.scenes[0] // cfg.train_dataloader.batch_size
    assert cfg.train_cfg[f'max_{job.task.unit}s'] == 2 * per_epoch
    assert cfg.default_hooks.checkpoint.interval == per_epoch, 'continues from the last epoch'
    text = json.dumps({k: cfg[k] for k in cfg if k.endswith(('dataloader', 'evaluator'))})
    assert 'data/demo' not in text
    assert text.count(str(tmp_path / 'elsewhere' / job.task.layout)) >= 3


@pytest.mark.parametrize(
    ('args', 'says'),
    [(['--epochs', '0'], 'must be a whole number from 1 on'), (['--scenes', '8', '4'], 'other parameters')],
)
def test_a_bad_call_ends_with_one_sentence(few_scenes, tmp_path, capsys, args, says):
    places = ['--work-dir', str(tmp_path), '--data', str(few_scenes)]
    with pytest.raises(SystemExit) as e:
        quickstart.main(['--task', 'det', *places, *args])
    assert e.value.code, 'not 0'
    assert says in capsys.readouterr().err + str(e.value.code)


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_a_killed_call_continues_and_its_numbers_are_those_of_the_test_tool(task, tmp_path):
    args = ('--epochs', '2')
    process = subprocess.Popen(
        command(task, tmp_path, *args), cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    work = tmp_path / 'work' / task
    deadline = time.time() + 400
    while not (work / 'control' / 'last_checkpoint').exists():
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = call(task, tmp_path, *args)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    log = (work / 'control' / 'console.log').read_text()
    assert 'resumed epoch' in log or 'resumed from' in log
    rows = json.loads((work / 'result.json').read_text())
    assert (work / 'result.png').stat().st_size > 10_000
    job = TASKS[task]
    (checkpoint,) = (work / 'scalenet').glob(f'{job.unit}_*.pth')
    out = tmp_path / 'metrics.json'
    again = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools/test.py'),
            str(ROOT / 'configs/demo' / job.scaled),
            str(checkpoint),
            '--out',
            str(out),
            '--work-dir',
            str(tmp_path / 'again'),
            '--cfg-options',
            f'data_root={tmp_path / "data" / job.layout}',
        ],
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert again.returncode == 0, again.stderr[-2000:]
    metrics = json.loads(out.read_text())
    for column, (key, factor) in job.metrics.items():
        assert rows[3]['metrics'][column] == pytest.approx(factor * metrics.get(key, 0), abs=1e-4)


def test_ctrl_c_in_a_run_stays_ctrl_c(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt), quiet(tmp_path / 'w'):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == '\nInterrupted. The same command continues from the last epoch.\n'
