"""One row of the paper: what it needs, what is checked first, and the bundle that a run leaves."""

import functools
import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import scalenet

import scalenet_mm
from scalenet_mm.commands.cfg_options import setting
from scalenet_mm.experiments.commands.reproduce import parse
from scalenet_mm.experiments.data import make_demo_data
from scalenet_mm.experiments.paper import check, make_plan, run
from scalenet_mm.experiments.paper.bundle import (
    METRIC_NAMES,
    Hidden,
    deviations,
    plan_config,
    readme,
    summary,
    write_bundle,
)
from scalenet_mm.experiments.paper.instructions import as_dict, describe
from scalenet_mm.experiments.paper.plan import parse_options
from scalenet_mm.experiments.paper.public import PUBLIC, other_counts
from scalenet_mm.experiments.paper.recount import ROWS
from scalenet_mm.experiments.paper.reproduction import _here, _settings, fetch, step
from scalenet_mm.one_run import ending_cleanly, one_run
from scalenet_mm.runner.config import load_config
from scalenet_mm.runner.preflight import problems

ROOT = Path(__file__).parents[1]
REPRODUCE = scalenet('experiment', 'reproduce')
SCALED = ROOT / 'configs' / 'demo' / 'scalenet_deit_digits.py'
LOADERS = [
    f'{loader}_dataloader.{key}'
    for loader in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """Demo data of 57 training images, and a source network's file."""
    folder = tmp_path_factory.mktemp('digits')
    data = make_demo_data(folder, ['imagenet'], train=57, val=19)['imagenet']
    torch.manual_seed(0)
    source = scalenet_mm.build(ROOT / 'configs' / 'demo' / 'deit_digits.py')
    torch.save({'state_dict': source.state_dict()}, folder / 'source.pth')
    return data, folder / 'source.pth'


def options(data: Path, epochs: int = 1) -> list[str]:
    size = ['train_dataloader.batch_size=19', f'train_cfg.max_epochs={epochs}']
    return [f'data_root={data}', *size, 'train_cfg.val_interval=9', *LOADERS]


def demo(digits, **changes):
    data, source = digits
    given = dict(options=options(data), checkpoint=str(source), cpu=True)
    return make_plan(str(SCALED), **{**given, **changes})


# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('row', 'data', 'digits', 'figure'),
    [  # printed in the paper; the digits stand in the publishers' file names
        ('table8/swin_t', 'SCALENET_COCO_ROOT', '90a4008c', 'box AP 46.7'),
        ('table9/swin_s', 'SCALENET_ADE_ROOT', 'ee2fff1c', 'mIoU 48.13'),
        ('table1/deit_b', 'SCALENET_IMAGENET_ROOT', 'b5f2ef4d', 'top-1 82.53'),
    ],
)
def test_a_row_prints_its_data_checkpoint_commands_and_figures(row, data, digits, figure):
    plan = make_plan(row)
    text = describe(plan)
    assert f'export {data}=FOLDER' in text and f'SHA-256 begins with {digits}' in text
    assert f'{figure} (paper)' in text and 'not measured here' in text
    assert f'bash tools/dist_train.sh {plan.file} 8 --work-dir' in text
    assert f'/{plan.last} 8 --work-dir' in text
    assert 'curl -L --create-dirs -o checkpoints/' in text


def test_a_publisher_without_digits_in_its_file_names_is_told():
    plan = make_plan('table1/swin_t')
    assert plan.checkpoint.digits is None
    assert 'its publisher gives no SHA-256' in describe(plan)


@pytest.mark.slow
def test_hours_are_the_papers_where_it_prints_them_and_never_invented():
    assert as_dict(make_plan('table1/deit_b'))['hours_in_the_paper'] == 19.8  # Table VII
    assert as_dict(make_plan('table7/deit_s'))['hours_in_the_paper'] == 15.8
    coco = as_dict(make_plan('table8/swin_s'))
    assert coco['hours_in_the_paper'] is None
    assert coco['hours_here'] == coco['memory'] == 'not measured here'


def test_memory_is_that_of_the_records_of_full_size_runs():
    (told,) = as_dict(make_plan('table9/swin_t'))['memory']
    record = ROOT / 'docs' / 'results' / 'run_upernet_scalenet_swin_t_40k_cpu.json'
    assert f'{json.loads(record.read_text())["peak_memory_mb"] / 1000:.1f} GB' in told


def test_a_pretrained_network_is_tested_and_not_trained():
    commands = as_dict(make_plan('table1/deit_b/base'))['commands']
    assert commands['train'] is None
    assert commands['test'].split()[2:5] == [
        'configs/baselines/deit_b_base.py',
        'checkpoints/deit_base_patch16_224-b5f2ef4d.pth',
        '8',
    ]


def test_of_a_pretrained_network_nothing_is_said_of_training():
    plan = make_plan('table1/deit_b/base')
    told = describe(plan)
    assert as_dict(plan)['trained'] == 0 and ', 0 of them trained' in told
    assert '--dry-run' not in told and 'images a step' not in told
    assert not any('images a step' in d for d in deviations(replace(plan, gpus=1)))


def test_the_users_checkpoint_is_in_every_command_that_begins_anew(digits, tmp_path):
    plan = demo(digits)
    assert f'--checkpoint {digits[1]}' in as_dict(plan)['commands']['all']
    assert '--checkpoint' not in as_dict(demo(digits, checkpoint=None))['commands']['all']
    assert f'--checkpoint {digits[1]}' in summary_of(plan, tmp_path)['command']


@pytest.mark.parametrize(
    'address, fetched, local',
    [
        ('hf://me/repo/in/f.pth', 'hf download me/repo in/f.pth --local-dir checkpoints', 'checkpoints/in/f.pth'),
        ('hf://me/r/f.pth@v1', 'hf download me/r f.pth --revision v1 --local-dir checkpoints', 'checkpoints/f.pth'),
        ('https://x.org/f.pth?a&b', "curl -L --create-dirs -o 'checkpoints/f.pth?a&b' 'https://x.org/f.pth?a&b'", None),
        ('torchvision://resnet50', None, 'torchvision://resnet50'),
    ],
)
def test_what_fetches_a_checkpoint_is_what_its_scheme_wants(address, fetched, local, digits):
    plan = demo(digits, checkpoint=address)
    commands = as_dict(plan)['commands']
    assert commands['fetch'] == fetched and (local is None or f'load_from={local}' in commands['train'])
    if fetched is None:
        assert fetch(plan) is None, 'the libraries find it themselves'


@pytest.mark.parametrize(
    'change, told',
    [
        ('train_dataloader = train_cfg = None', r'has no train_dataloader and no train_cfg: reproduce trains'),
        ("test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))", None),
        ("test_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale_factor=2.0)]))", None),
        (
            'data_preprocessor = dict(pad_size_divisor=32)\nmodel = dict(data_preprocessor=None)\n'
            "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))",
            None,
        ),
    ],
)
def test_a_config_of_ones_own_has_a_plan_or_is_told(change, told, tmp_path):
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = '{SCALED.with_name('mask_rcnn_scalenet_swin_digits.py')}'\n{change}\n")
    if told:
        with pytest.raises(SystemExit, match=told):
            make_plan(str(mine))
    else:
        assert as_dict(make_plan(str(mine)))['flops_of'] == [224, 224]


def test_a_seed_has_one_option():
    with pytest.raises(SystemExit, match=r'randomness.seed=5 would be overwritten; write --seed 5'):
        make_plan('table7/deit_b', options=['randomness.seed=5'])


def test_from_scratch_needs_no_checkpoint():
    plan = make_plan('table7/deit_b/scratch_300_epochs')
    assert plan.checkpoint is None and plan.last == 'epoch_300.pth'
    told = as_dict(plan)
    assert told['commands']['fetch'] is None and 'load_from' not in told['commands']['train']


def test_an_unknown_row_is_answered_with_the_nearest():
    with pytest.raises(SystemExit, match=r"'table8/swim_t'.*'table8/swin_t'"):
        make_plan('table8/swim_t')


def test_every_metric_that_the_paper_prints_is_one_that_a_run_gives():
    printed = {name for row in ROWS for name in row.result}
    assert printed - {'hours'} <= {name for name, _ in METRIC_NAMES.values()}


@pytest.mark.slow
def test_every_row_of_the_paper_has_a_plan():
    for row in ROWS:
        plan = make_plan(row.key)
        assert plan.row is row and plan.data in PUBLIC and plan.config.is_file()
        assert plan.batch == plan.cfg.auto_scale_lr.base_batch_size  # the recipe's, on 8 GPUs


# --- checks --------------------------------------------------------------------------------------


def test_a_part_of_a_data_set_is_not_taken_for_the_whole(digits):
    missing = list(other_counts(PUBLIC[0], digits[0]))
    assert missing == [
        'train holds 57 images; ImageNet-1K has 1,281,167.',
        'val holds 19 images; ImageNet-1K has 50,000.',
    ]
    assert list(other_counts(PUBLIC[0], digits[0], trains=False)) == missing[1:]


def test_folders_that_are_links_are_counted(digits, tmp_path):
    for name in ('train', 'val'):
        (tmp_path / name).mkdir()
        for folder in (digits[0] / name).iterdir():
            (tmp_path / name / folder.name).symlink_to(folder)
    assert list(other_counts(PUBLIC[0], tmp_path)) == list(other_counts(PUBLIC[0], digits[0]))


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_missing_gpus_and_missing_data_are_told_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv('SCALENET_IMAGENET_ROOT', str(tmp_path / 'nowhere'))
    with pytest.raises(SystemExit, match=r'8 GPUs are wanted and there is none.*19.8 hours'):
        run(make_plan('table7/deit_b'), tmp_path / 'out')
    with pytest.raises(SystemExit, match=r'(?s)there is no folder .*nowhere.*SCALENET_IMAGENET_ROOT'):
        run(make_plan('table7/deit_b', cpu=True), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_demo_passes_its_checks_and_a_missing_checkpoint_does_not(digits):
    assert check(demo(digits)) == digits[1]
    with pytest.raises(SystemExit, match=r'no checkpoint .*gone.pth.*--checkpoint FILE'):
        check(demo(digits, checkpoint=str(digits[1].with_name('gone.pth'))))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A real server with one file, whose name carries the first eight digits of its SHA-256."""
    content = os.urandom(1000)
    name = f'tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    (tmp_path / 'www').mkdir()
    (tmp_path / 'www' / name).write_bytes(content)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / 'www')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/{name}', content
        server.shutdown()


def test_a_checkpoint_is_fetched_once_and_compared_with_its_name(digits, published, tmp_path):
    address, content = published
    plan = demo(digits, checkpoint=address)
    path = fetch(plan)
    assert path.read_bytes() == content and path.is_relative_to(tmp_path / 'hub')
    (tmp_path / 'www' / path.name).unlink()
    assert fetch(plan) == path  # from the cache
    path.write_bytes(b'cut off')
    found = hashlib.sha256(b'cut off').hexdigest()[:8]
    with pytest.raises(SystemExit, match=f'is not the published file.*{found}.*{plan.checkpoint.digits}'):
        fetch(plan)


def test_a_local_file_must_be_the_one_that_the_config_names(tmp_path):
    (tmp_path / 'mine.pth').write_bytes(b'another')
    plan = make_plan('table1/deit_b', checkpoint=str(tmp_path / 'mine.pth'))
    with pytest.raises(SystemExit, match='with b5f2ef4d'):
        fetch(plan)


def test_an_address_that_answers_nothing_is_told_with_the_way_out(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    with pytest.raises(SystemExit, match='could not be downloaded.*--checkpoint FILE'):
        fetch(demo(digits, checkpoint='http://127.0.0.1:9/x-01234567.pth'))


# --- the run -------------------------------------------------------------------------------------


def test_a_failed_step_is_written_down_and_told_with_the_way_to_continue(tmp_path, capfd):
    with pytest.raises(SystemExit, match='train ended with status 3 .*the same command continues'):
        step('train', ['python', '-c', 'print("why"); raise SystemExit(3)'], tmp_path)
    (noted,) = json.loads((tmp_path / 'steps.json').read_text())
    assert (noted['step'], noted['exit']) == ('train', 3)
    assert (tmp_path / 'console.log').read_text() == 'why\n' and 'why' in capfd.readouterr().out


def test_a_step_that_is_told_to_end_ends_its_tool(tmp_path):
    """SIGTERM reaches this process alone, unlike Ctrl-C: the training would go on without anyone to test it."""
    told = tmp_path / 'pid'
    tool = f'import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(60)'

    def stop():
        while not (told.is_file() and told.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with ending_cleanly(), pytest.raises(SystemExit, match='train ended with status'):
        step('train', ['python', '-c', tool], tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


def test_a_step_that_nobody_reads_ends_its_tool_and_is_written_down(tmp_path, monkeypatch):
    def full(text, **_):
        if text.strip().isdigit():  # what the tool says
            raise OSError('no space left')

    tool = 'import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)'
    with monkeypatch.context() as m, pytest.raises(OSError, match='no space left'):
        m.setattr('scalenet_mm.experiments.paper.reproduction.print', full, raising=False)
        begin = time.time()
        step('train', ['python', '-c', tool], tmp_path)
    assert time.time() - begin < 30
    (noted,) = json.loads((tmp_path / 'steps.json').read_text())
    assert (noted['step'], noted['exit']) == ('train', -signal.SIGTERM)


def test_a_config_of_the_repository_is_found_from_any_folder(tmp_path, monkeypatch):
    mine = ROOT / f'mine_of_test_{os.getpid()}.py'
    monkeypatch.chdir(tmp_path)
    assert _here(mine.name) == mine.name
    try:
        mine.write_text(f"_base_ = '{SCALED}'\n")
        assert _here(make_plan(str(mine)).file) == str(mine)
    finally:
        mine.unlink()


def test_options_that_are_given_twice_are_all_kept():
    args = parse(['table1/deit_t', '--cfg-options', 'a=1', 'b=2', '--cfg-options', 'c=3'])
    assert args.cfg_options == ['a=1', 'b=2', 'c=3']
    assert parse(['table1/deit_t']).cfg_options == []


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused(digits, tmp_path):
    with one_run(tmp_path):
        code = 'import sys; from scalenet_mm.experiments.paper import make_plan, run; import scalenet_mm.registration\n'
        code += f'run(make_plan({str(SCALED)!r}, options={options(digits[0])!r}, checkpoint={str(digits[1])!r}, '
        code += f'cpu=True), __import__("pathlib").Path({str(tmp_path)!r}))'
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1 and f'a run goes on in {tmp_path}' in done.stderr
    assert not (tmp_path / 'steps.json').exists()


def test_a_folder_with_another_run_is_refused_and_left_alone(digits, tmp_path):
    (tmp_path / 'settings.json').write_text('{"seed": 1}')
    with pytest.raises(SystemExit, match='holds a run with other settings'):
        run(demo(digits), tmp_path)
    assert os.listdir(tmp_path) == ['settings.json']
    assert (tmp_path / 'settings.json').read_text() == '{"seed": 1}'


def test_a_run_is_done_only_for_the_config_and_the_checkpoint_that_it_had(digits, tmp_path, capsys):
    data, source = digits
    mine, start = tmp_path / 'mine.py', tmp_path / 'start.pth'
    mine.write_text(f"_base_ = '{SCALED}'\n")
    start.write_bytes(source.read_bytes())

    def plan(config=mine):
        return make_plan(str(config), options=options(data), checkpoint=str(start), cpu=True)

    run_folder = tmp_path / 'run'
    (run_folder / 'bundle').mkdir(parents=True)
    known = run_folder / 'settings.json'
    known.write_text(json.dumps(_settings(plan())))
    assert run(plan(), run_folder) == run_folder / 'bundle' and 'is done already' in capsys.readouterr().out
    start.write_bytes(b'other weights')
    with pytest.raises(SystemExit, match='holds a run with other settings .*checkpoint_sha256 was .* and is '):
        run(plan(), run_folder)
    start.write_bytes(source.read_bytes())
    other = tmp_path / 'elsewhere' / 'mine.py'
    other.parent.mkdir()
    other.write_text(f"_base_ = '{SCALED}'\nmodel = dict(backbone=dict(drop_path_rate=0.5))\n")
    with pytest.raises(SystemExit, match='other settings .*config_sha256 was'):
        run(plan(other), run_folder)
    older = {k: v for k, v in json.loads(known.read_text()).items() if 'sha256' not in k}
    known.write_text(json.dumps(older))  # of an earlier version: what it does not say is not compared
    assert run(plan(other), run_folder) == run_folder / 'bundle'


def test_paths_with_spaces_and_commas_reach_a_config_as_they_were_typed():
    words = ['a=/my data/x, y.pth', 'b="/my data/x, y.pth"', "c='3'", 'd=/my data/x.pth', 'e=3', 'f=None', 'g=[1, 2]']
    found = parse_options([*words, 'h="[a,b]"', 'i=1,2', 'j=a b=c', 'k=', 'l=["a b", "c,d"]', 'm=[(1, "a b")]'])
    assert found == dict(
        a=['/mydata/x', 'y.pth'],  # mmengine's lists need no brackets
        b='/my data/x, y.pth',
        c='3',
        d='/my data/x.pth',
        e=3,
        f=None,
        g=[1, 2],
        h=['a', 'b'],
        i=[1, 2],
        j='a b=c',
        k='',
        l=['a b', 'c,d'],
        m=[(1, 'a b')],
    )
    for path in ('/data/x.pth', '/my data/x.pth', '/a, b/x.pth', '/my data (1)/x.pth', '/a, [b]/x.pth'):
        assert parse_options([setting('load_from', path)]) == {'load_from': path}


def test_a_bundle_sets_the_result_beside_the_papers(tmp_path):
    """Written from what a run of Table VIII would leave: steps, log, metrics."""
    metrics = {'coco/bbox_mAP': 0.465, 'coco/bbox_mAP_50': 0.687, 'coco/segm_mAP': 0.4}
    (tmp_path / 'metrics.json').write_text(json.dumps(metrics))
    (tmp_path / 'steps.json').write_text(json.dumps([dict(step='train', seconds=7200, exit=0)]))
    (tmp_path / 'console.log').write_text('trained\n')
    write_bundle(make_plan('table8/swin_t', gpus=4), tmp_path, None)
    result = json.loads((tmp_path / 'bundle' / 'result.json').read_text())
    assert result['metrics'] == {'box AP': 46.5, 'box AP50': 68.7}
    assert result['difference'] == {'box AP': -0.2, 'box AP50': 0.0}
    assert result['training_hours'] == 2 and '8 images a step, the recipe has 16' in result['deviations']
    page = (tmp_path / 'bundle' / 'README.md').read_text()
    assert result['checkpoint']['sha256'] == 'not known'  # of a file that the libraries find
    assert '| box AP | 46.50 | 46.7 | -0.20 |' in page
    assert '| box AP75 | not measured | 51.2 | – |' in page


def test_the_command_in_a_bundle_says_where_hidden_data_go(digits, tmp_path, monkeypatch):
    plan = demo(digits)
    told = summary_of(plan, tmp_path)
    told['delta'] = dict(file='x.delta.safetensors')
    assert '--delta x.delta.safetensors --cfg-options data_root=FOLDER`' in readme(plan, told)
    (tmp_path / 'config.py').write_text(Hidden(plan, tmp_path, digits[1])(plan_config(plan)))
    cfg = load_config(str(tmp_path / 'config.py'), options={'data_root': str(digits[0]), 'load_from': None})
    assert cfg.test_dataloader.dataset.data_root == str(digits[0]) and not list(problems(cfg, ('val', 'test')))
    monkeypatch.chdir(digits[0].parent)
    here = demo(digits, options=[f'data_root={digits[0].name}', *options(digits[0])[1:]])
    assert '--delta x.delta.safetensors`' in readme(here, told), 'a path from here is no place of the machine'


def summary_of(plan, folder):
    """Of a run that measured nothing."""
    (folder / 'metrics.json').write_text('{}')
    (folder / 'steps.json').write_text('[]')
    return summary(plan, folder, None)


def test_folders_of_the_machine_get_names_and_other_paths_stay(digits, tmp_path):
    hide = Hidden(demo(digits), tmp_path, digits[1])
    assert hide(f"work_dir = '{tmp_path}/work'") == "work_dir = 'RUN/work'"
    assert hide(f'load_from={digits[1]}') == 'load_from=CHECKPOINTS/source.pth'
    assert hide(f'{digits[0]}/val') == 'DATA/val'
    for other in (f'/opt{tmp_path}/x', f'{tmp_path}-2/x'):
        assert hide(other) == other


def call(digits, out: Path, *more: str) -> list[str]:
    data, source = digits
    command = [*REPRODUCE, SCALED, '--run', '--cpu', '--out', out, *more]
    return [*map(str, command), '--cfg-options', f'load_from={source}', *options(data, epochs=3)]


@pytest.mark.slow
def test_a_run_that_is_killed_continues_and_leaves_a_bundle_without_paths(digits, tmp_path):
    """Checks, training, test and bundle by the real tools; the bundle's config and delta give its result again."""
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    out = tmp_path / 'out' / 'scalenet_deit_digits-seed7'
    killed = subprocess.Popen(
        call(digits, tmp_path / 'out', '--seed', '7'),
        env=env,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while not (out / 'work' / 'last_checkpoint').exists() and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (out / 'bundle').exists()

    done = subprocess.run(
        call(digits, tmp_path / 'out', '--seed', '7'), env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    bundle = out / 'bundle'
    kept = {p.name for p in bundle.iterdir()}
    assert kept == {
        *('README.md', 'config.py', 'environment.json', 'log.txt', 'result.json'),
        'epoch_3.delta.safetensors',
    }
    for path in bundle.iterdir():
        for place in (tmp_path, digits[0], digits[1].parent, ROOT, Path(sys.prefix)):
            assert str(place).encode() not in path.read_bytes(), f'{path.name}: {place}'
    result = json.loads((bundle / 'result.json').read_text())
    assert result['seed'] == 7 and result['checkpoint']['sha256'] == hashlib.sha256(digits[1].read_bytes()).hexdigest()
    assert json.loads((bundle / 'environment.json').read_text())['versions']['torch'] == torch.__version__

    # what is done is not done again
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*')}
    again = subprocess.run(
        call(digits, tmp_path / 'out', '--seed', '7'), env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert again.returncode == 0 and 'is done already' in again.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob('*')} == before

    # source + delta, under the bundle's own config
    command = [sys.executable, ROOT / 'tools' / 'test.py', bundle / 'config.py', digits[1]]
    command += ['--delta', bundle / 'epoch_3.delta.safetensors', '--out', tmp_path / 'm.json']
    command += ['--cfg-options', f'test_dataloader.dataset.data_root={digits[0]}']
    tested = subprocess.run(list(map(str, command)), env=env, cwd=tmp_path, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr[-3000:]
    assert json.loads((tmp_path / 'm.json').read_text()) == result['all_metrics']


@pytest.mark.slow
def test_the_tool_lists_all_rows_and_prints_pure_json():
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    listed = subprocess.run([*REPRODUCE, '--list'], env=env, capture_output=True, text=True)
    assert {line.split()[0] for line in listed.stdout.splitlines()[2:]} == {r.key for r in ROWS}
    command = [*REPRODUCE, 'table8/swin_t', '--json']
    told = json.loads(subprocess.run(command, env=env, capture_output=True, text=True).stdout)
    listed = json.loads(subprocess.run([*REPRODUCE, '--list', '--json'], env=env, capture_output=True).stdout)
    assert [line['row'] for line in listed] == [r.key for r in ROWS]
    assert re.fullmatch(r'table8/swin_t/scalenet', told['row']) and told['parameters'] == 48_753_066
