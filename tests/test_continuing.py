"""`--resume` finds a run's checkpoint wherever its folder went, and loses no other one."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from toy_run import toy_config, write_base

from scalenet_mm.checkpoint.strict import CheckpointError
from scalenet_mm.runner.config import build_runner
from scalenet_mm.runner.continuing import latest, require_continuable, settle

ROOT = Path(__file__).parents[1]


def content(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob('*.pth')}


def files(folder: Path, *names: str, pointer: str | None = None) -> Path:
    """A folder of empty checkpoints, each written a second after the one before, `last_checkpoint` before the last."""
    folder.mkdir(parents=True)
    for second, name in enumerate(names):
        (folder / name).touch()
        os.utime(folder / name, (1000 + second, 1000 + second))
    if pointer:
        (folder / 'last_checkpoint').write_text(pointer)
        os.utime(folder / 'last_checkpoint', (998.5 + len(names), 998.5 + len(names)))
    return folder


@pytest.mark.parametrize(
    ('names', 'pointer', 'found'),
    [
        ((), None, None),
        (('epoch_1.pth', 'epoch_2.pth'), '/gone/run/epoch_2.pth', 'epoch_2.pth'),  # moved or renamed
        (('epoch_2.pth', 'epoch_10.pth'), None, 'epoch_10.pth'),  # the .pth alone were copied
        (('iter_400.pth', 'best_acc_iter_400.pth'), None, 'iter_400.pth'),
        (('epoch_1.pth',), 'epoch_9.pth', 'epoch_1.pth'),  # the last one was removed
        (('epoch_1.pth', 'epoch_2.pth'), 'epoch_1.pth', 'epoch_2.pth'),  # killed between file and pointer
        (('epoch_9.pth', 'epoch_1.pth'), 'epoch_1.pth', 'epoch_1.pth'),  # 9 is of a run before
        (('best_acc_epoch_1.pth', 'epoch_1.pth'), 'epoch_1.pth', 'epoch_1.pth'),
    ],
)
def test_the_last_checkpoint_is_found_in_the_folder_as_it_is_now(names, pointer, found, tmp_path):
    folder = files(tmp_path / 'run', *names, pointer=pointer)
    assert latest(folder) == (found and str(folder / found))


def test_the_checkpoint_of_the_copy_is_taken_and_not_that_of_the_original(tmp_path):
    original = files(tmp_path / 'a', 'epoch_1.pth', pointer=str(tmp_path / 'a' / 'epoch_1.pth'))
    shutil.copytree(original, tmp_path / 'b')
    assert latest(tmp_path / 'b') == str(tmp_path / 'b' / 'epoch_1.pth')


def test_a_hooks_folder_elsewhere_is_looked_in(tmp_path):
    elsewhere = files(tmp_path / 'big' / 'run', 'epoch_1.pth')
    cfg = dict(default_hooks=dict(checkpoint=dict(out_dir=str(tmp_path / 'big'))))
    assert latest(tmp_path / 'run', cfg) == str(elsewhere / 'epoch_1.pth')


def test_a_copy_without_the_last_checkpoint_continues_from_its_own_and_not_from_the_originals(tmp_path):
    files(tmp_path / 'a', 'epoch_3.pth')
    copy = files(tmp_path / 'b', 'epoch_1.pth', pointer=str(tmp_path / 'a' / 'epoch_3.pth'))
    assert latest(copy) == str(copy / 'epoch_1.pth')
    empty = files(tmp_path / 'c', pointer=str(tmp_path / 'a' / 'epoch_3.pth'))
    assert latest(empty) == str(tmp_path / 'a' / 'epoch_3.pth')


def named(template: str, by_epoch: bool = True) -> dict:
    return dict(default_hooks=dict(checkpoint=dict(filename_tmpl=template, by_epoch=by_epoch)))


@pytest.mark.parametrize(
    ('cfg', 'names', 'found'),
    [
        (named('model_{}.pth'), ('model_2.pth', 'model_10.pth', 'best_acc_model_2.pth'), 'model_10.pth'),
        (named('{:04d}.ckpt', False), ('0002.ckpt', '0010.ckpt'), '0010.ckpt'),
        (named('latest.pth'), ('latest.pth',), 'latest.pth'),
        (dict(custom_hooks=[dict(type='MyHook', filename_tmpl='m_{}.pth')]), ('m_2.pth', 'm_1.pth'), 'm_2.pth'),
        (named('model_{}.pth'), ('modelx1.pth', 'mine.pth'), None),
    ],
)
def test_checkpoints_are_found_by_the_hooks_own_names(cfg, names, found, tmp_path):
    folder = files(tmp_path / 'run', *names)
    assert latest(folder, cfg) == (found and str(folder / found))


@pytest.mark.parametrize(
    ('names', 'pointer', 'said'),
    [
        (('best_acc_epoch_3.pth',), None, ': --resume {}/best_acc_epoch_3.pth$'),
        (('epoch_3.pth', 'iter_12.pth'), None, ': --resume {0}/epoch_3.pth, or --resume {0}/iter_12.pth$'),
        (('best_acc_epoch_2.pth', 'epoch_4.pth', 'iter_20.pth'), None, ': --resume {0}/iter_20.pth$'),
        (('epoch_3.pth', 'iter_9.pth', 'cut.pth'), None, ': --resume {0}/epoch_3.pth$'),
        ((), '/gone/epoch_3.pth', 'names /gone/epoch_3.pth, which is not there.*Leave --resume out'),
    ],
)
def test_where_it_is_not_clear_which_is_the_last_those_that_a_run_can_continue_are_named(
    names, pointer, said, tmp_path
):
    folder = files(tmp_path / 'run', *names, pointer=pointer)
    for name in names:  # four iterations an epoch
        number = int(re.sub(r'\D', '', name) or 0)
        torch.save(checkpoint(number // 4 if name.startswith('iter') else number), folder / name)
    with pytest.raises(SystemExit, match=said.format(re.escape(str(folder)))) as refused:
        latest(folder)
    for file in re.findall(r'--resume (\S+\.pth)', str(refused.value)):
        require_continuable(dict(work_dir=str(folder)), file)  # what is advised is taken


def checkpoint(epoch: int) -> dict:
    return dict(meta=dict(epoch=epoch, iter=4 * epoch), message_hub={}, state_dict={})


def test_a_checkpoint_that_cannot_be_read_is_not_advised(tmp_path):
    folder = files(tmp_path / 'run', 'epoch_3.pth', 'iter_12.pth')
    torch.save(checkpoint(3), folder / 'iter_12.pth')
    with pytest.raises(SystemExit, match=f': --resume {folder}/iter_12.pth$'):
        latest(folder)
    (folder / 'iter_12.pth').write_bytes(b'')
    with pytest.raises(SystemExit, match='None of them can be read: leave --resume out'):
        latest(folder)
    torch.save({**checkpoint(3), 'meta': {}}, folder / 'epoch_3.pth')  # of which the weights can still be used
    with pytest.raises(SystemExit, match=f'add --cfg-options load_from={folder}/epoch_3.pth'):
        latest(folder)


def test_a_refused_checkpoint_names_those_that_can_be_continued_and_not_itself(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    for epoch in (9, 1):  # 9 is of a run before
        torch.save(checkpoint(epoch), folder / f'epoch_{epoch}.pth')
    (folder / 'last_checkpoint').write_text('epoch_1.pth')
    with pytest.raises(CheckpointError, match=rf'Name the checkpoint .*: --resume {folder}/epoch_9\.pth$'):
        require_continuable(dict(work_dir=str(folder)), latest(folder))


@pytest.mark.parametrize(
    ('there', 'resumed', 'lost'),
    [
        (('epoch_1.pth', 'epoch_3.pth'), 'run/epoch_2.pth', 'epoch_3.pth'),
        (('epoch_1.pth', 'iter_12.pth'), 'run/best_acc_epoch_2.pth', 'iter_12.pth'),
        (('epoch_1.pth', 'best_acc_epoch_1.pth'), 'other/epoch_2.pth', 'best_acc_epoch_1.pth, epoch_1.pth'),
        (('epoch_1.pth', 'best_acc_epoch_1.pth'), 'run/epoch_2.pth', None),
        (('mine.pth',), 'other/epoch_2.pth', None),
    ],
)
def test_a_run_that_would_write_over_other_checkpoints_is_refused(there, resumed, lost, tmp_path):
    cfg = dict(work_dir=str(files(tmp_path / 'run', *there)))
    (tmp_path / 'other').mkdir()
    torch.save(checkpoint(2), tmp_path / resumed)
    if lost is None:
        return require_continuable(cfg, str(tmp_path / resumed))
    with pytest.raises(CheckpointError, match=f'holds {lost}, which a run .*epoch 2, iteration 8.*--work-dir'):
        require_continuable(cfg, str(tmp_path / resumed))


@pytest.mark.parametrize(
    'content', [dict(state_dict={}), dict(checkpoint(1), meta=dict(epoch=1)), dict(checkpoint(1), meta=[1, 4])]
)
def test_weights_alone_are_no_checkpoint_to_resume_from(content, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth is no checkpoint.*leave --resume out.*load_from=\S*x\.pth\.$'):
        require_continuable(dict(work_dir=str(tmp_path)), str(tmp_path / 'x.pth'))


@pytest.mark.parametrize('meta', [dict(epoch='x', iter=4), dict(epoch=1, iter=4.0), dict(epoch=-1, iter=4)])
def test_a_position_that_is_no_number_of_epochs_and_iterations_is_refused(meta, tmp_path):
    torch.save(dict(checkpoint(1), meta=meta), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth is no checkpoint.*numbers from 0, and it has (epoch|iter)='):
        require_continuable(dict(work_dir=str(tmp_path)), str(tmp_path / 'x.pth'))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of two epochs that keeps one checkpoint and the best, and its config for three more epochs elsewhere."""
    base = write_base(tmp_path_factory.mktemp('base') / 'base.pth')

    def config(folder, epochs=5):  # ToyMetric counts anew in a resumed run: the third validation is better again
        cfg = toy_config(folder, base, max_keep_ckpts=1, save_best='acc')
        cfg.train_cfg.max_epochs = epochs
        return cfg

    folder = tmp_path_factory.mktemp('work') / 'run'
    build_runner(config(folder, 2)).train()
    assert {*content(folder)} == {'epoch_2.pth', 'best_acc_epoch_2.pth'}
    return folder, config


def resumed(cfg, file=None):
    cfg.resume, cfg.load_from = True, file and str(file)
    build_runner(cfg).train()


def test_a_copied_run_continues_and_the_original_keeps_every_file(run, tmp_path):
    folder, config = run
    before = content(folder)
    shutil.copytree(folder, tmp_path / 'copy')
    resumed(config(tmp_path / 'copy'))
    assert content(folder) == before
    assert {*content(tmp_path / 'copy')} == {'epoch_5.pth', 'best_acc_epoch_5.pth'}


def test_a_run_continued_elsewhere_removes_nothing_of_either_folder(run, tmp_path):
    folder, config = run
    before = content(folder)
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'mine.pth').write_bytes(b'x')
    resumed(config(tmp_path / 'new'), folder / 'epoch_2.pth')
    assert content(folder) == before
    assert {*content(tmp_path / 'new')} == {'mine.pth', 'epoch_5.pth', 'best_acc_epoch_5.pth'}


def test_a_best_checkpoint_of_a_later_position_is_kept_by_another_name(run, tmp_path):
    folder, config = run
    shutil.copytree(folder, tmp_path / 'copy')
    (tmp_path / 'copy' / 'best_acc_epoch_5.pth').write_bytes(b'of a run before')
    resumed(config(tmp_path / 'copy'))
    assert (tmp_path / 'copy' / 'best_acc_epoch_5.earlier_1.pth').read_bytes() == b'of a run before'
    assert torch.load(tmp_path / 'copy' / 'best_acc_epoch_5.pth', weights_only=False)['meta']['epoch'] == 5


def test_the_runner_refuses_before_anything_is_written_over_whichever_tool_built_it(run, tmp_path):
    folder, config = run
    shutil.copytree(folder, tmp_path / 'copy')
    shutil.copy(folder / 'epoch_2.pth', tmp_path / 'copy' / 'epoch_3.pth')
    before = content(tmp_path / 'copy')
    with pytest.raises(CheckpointError, match=r'holds epoch_3\.pth, which'):
        resumed(config(tmp_path / 'copy'), tmp_path / 'copy' / 'epoch_2.pth')
    assert content(tmp_path / 'copy') == before


def test_a_run_that_starts_anew_keeps_the_checkpoints_of_an_earlier_one_and_can_be_continued(run, tmp_path):
    folder, config = run
    shutil.copytree(folder, tmp_path / 'copy')
    for file in ('epoch_2.delta.safetensors', 'epoch_2.txt'):
        (tmp_path / 'copy' / file).write_text('of the run before')
    before = content(tmp_path / 'copy')
    build_runner(config(tmp_path / 'copy', 1)).train()
    after = content(tmp_path / 'copy')
    assert {*after} == {
        'epoch_1.pth',
        'best_acc_epoch_1.pth',
        'epoch_2.earlier_1.pth',
        'best_acc_epoch_2.earlier_1.pth',
    }
    assert all(after[name.replace('.pth', '.earlier_1.pth')] == digest for name, digest in before.items())
    assert (tmp_path / 'copy' / 'epoch_2.earlier_1.delta.safetensors').read_text() == 'of the run before'
    assert (tmp_path / 'copy' / 'epoch_2.txt').is_file()
    resumed(config(tmp_path / 'copy', 2))
    assert 'epoch_2.pth' in content(tmp_path / 'copy')


def test_a_validation_before_the_first_checkpoint_renames_nothing(run, tmp_path):
    folder, config = run
    shutil.copytree(folder, tmp_path / 'copy')
    before, cfg = content(tmp_path / 'copy'), config(tmp_path / 'copy', 2)
    cfg.default_hooks.checkpoint.update(interval=5, save_best=None, save_last=False)
    build_runner(cfg).train()
    assert content(tmp_path / 'copy') == before


@pytest.mark.parametrize('tool', ['mmdet', 'mmseg'])
def test_resume_by_the_libraries_own_tools_finds_the_run_or_starts_from_the_base(tool, run, tmp_path):
    """mmdet's and mmpretrain's tools take ``load_from`` away, mmseg's leaves the base in it."""
    folder, _ = run
    base = tmp_path / 'base.pth'
    file = tmp_path / 'mine.py'
    file.write_text(f"load_from = '{base}'\nmodel = dict()\n")
    for work_dir, found in ((folder, folder / 'epoch_2.pth'), (tmp_path / 'empty', base)):
        cfg = Config.fromfile(file)
        cfg.work_dir, cfg.resume = str(work_dir), True
        if tool == 'mmdet':
            cfg.load_from = None
        settle(cfg)
        assert cfg.load_from == str(found)
        if tool == 'mmdet':
            assert cfg.resume == (work_dir == folder)
        settle(cfg)
        assert cfg.load_from == str(found), 'a second call changes nothing'
    cfg.resume, cfg.load_from = True, str(tmp_path / 'other.pth')
    cfg.work_dir = str(folder)
    settle(cfg)
    assert cfg.load_from == str(tmp_path / 'other.pth'), 'what was named is taken'
    shutil.copy(folder / 'epoch_2.pth', base)  # of a run too, and so it may be meant
    cfg.load_from = str(base)
    settle(cfg)
    assert cfg.load_from == str(base)


def test_what_is_stopped_before_it_wrote_a_checkpoint_leaves_the_earlier_run_as_it_is(run, tmp_path):
    folder, config = run
    shutil.copytree(folder, tmp_path / 'copy')
    cfg = config(tmp_path / 'copy')
    cfg.train_dataloader.dataset = dict(type='ToyImagesThatEnd')
    with pytest.raises(KeyboardInterrupt):
        build_runner(cfg).train()
    assert content(tmp_path / 'copy') == content(folder)
    assert latest(tmp_path / 'copy', cfg) == str(tmp_path / 'copy' / 'epoch_2.pth')


@pytest.mark.parametrize('written', ['~/copy/epoch_2.pth', 'file://{}/copy/epoch_2.pth'])
def test_a_checkpoint_is_the_folders_own_however_it_is_written(written, run, tmp_path, monkeypatch):
    folder, config = run
    monkeypatch.setenv('HOME', str(tmp_path))
    shutil.copytree(folder, tmp_path / 'copy')
    resumed(config(tmp_path / 'copy'), written.format(tmp_path))
    assert {*content(tmp_path / 'copy')} == {'epoch_5.pth', 'best_acc_epoch_5.pth'}


def test_deltas_in_a_hooks_folder_elsewhere_go_with_their_checkpoints_in_a_resumed_run(run, tmp_path):
    def config(epochs):
        cfg = run[1](tmp_path / 'run', epochs)
        cfg.default_hooks.checkpoint.out_dir = str(tmp_path / 'big')
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='DeltaHook')]
        return cfg

    build_runner(config(2)).train()
    resumed(config(4))
    left = {p.name for p in (tmp_path / 'big' / 'run').glob('*.delta.safetensors')}
    assert left == {f'{Path(name).stem}.delta.safetensors' for name in content(tmp_path / 'big' / 'run')}


@pytest.mark.parametrize('file', [None, 'model_1.pth'])
def test_a_run_of_other_names_loses_none_of_its_checkpoints(file, tmp_path):
    base = write_base(tmp_path / 'base.pth')

    def config(**hook):
        cfg = toy_config(tmp_path / 'run', base, filename_tmpl='model_{}.pth', **hook)
        cfg.train_cfg.max_epochs = 3
        return cfg

    build_runner(config()).train()
    (tmp_path / 'run' / 'last_checkpoint').unlink()
    before = content(tmp_path / 'run')
    assert {*before} == {'model_1.pth', 'model_2.pth', 'model_3.pth'}
    if file is None:
        resumed(config(max_keep_ckpts=1))  # finds the last, after which nothing is left to train
    else:
        with pytest.raises(CheckpointError, match=r'holds model_2\.pth, model_3\.pth, which a run'):
            resumed(config(), tmp_path / 'run' / file)
    assert content(tmp_path / 'run') == before


@pytest.mark.slow
def test_the_command_says_what_to_do_and_that_works_on_two_processes(run, tmp_path):
    folder, config = run
    (tmp_path / 'copy').mkdir()
    shutil.copy(folder / 'best_acc_epoch_2.pth', tmp_path / 'copy')
    config('unused').dump(tmp_path / 'c.py')
    env = {**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}', 'OMP_NUM_THREADS': '1'}

    def train(work_dir, *resume):
        command = ['bash', ROOT / 'tools' / 'dist_train.sh', tmp_path / 'c.py', '2', '--work-dir', tmp_path / work_dir]
        env['PATH'] = f'{Path(sys.executable).parent}:{env["PATH"]}'
        return subprocess.run([*map(str, command), *resume], env=env, cwd=tmp_path, capture_output=True, text=True)

    refused = train('copy', '--resume')  # mmengine writes the best one without the optimizer's states
    advice = re.search(r'leave --resume out and add (--cfg-options \S+\.pth)\.', refused.stdout + refused.stderr)
    assert refused.returncode and advice, refused.stderr[-3000:]
    done = train('other', *shlex.split(advice[1]))
    assert done.returncode == 0, done.stderr[-3000:]
    assert {*content(tmp_path / 'other')} >= {'epoch_5.pth'}
