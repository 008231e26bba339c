"""The study: its task, its statistics, its rows, and runs that stop, crash and continue."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import scalenet
from scipy import stats as scipy_stats
from sklearn.datasets import load_digits

from scalenet_mm.commands.main import main
from scalenet_mm.experiments.paper.recount import ROWS as PAPER
from scalenet_mm.experiments.study import paper_scale
from scalenet_mm.experiments.study.claims import (
    CLAIMS,
    FOLLOW_UP,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    Claim,
    verdicts,
)
from scalenet_mm.experiments.study.pool import RESULTS, Job, alone, latest, read_results, run_all
from scalenet_mm.experiments.study.rank import RankBatches, RankHead, RankMetric
from scalenet_mm.experiments.study.rows import PILOT, ROWS, STUDIES
from scalenet_mm.experiments.study.runs import digest, jobs_of, shortened
from scalenet_mm.experiments.study.stats import holm, interval

ROOT = Path(__file__).parents[1]


# ------------------------------------------------------------------------------- the task


def test_a_label_is_the_number_of_cells_with_a_smaller_digit():
    batches = RankBatches('val', 3, 5, seed=(7, 2))
    images = load_digits().images / 16
    held_out = {im.tobytes() for im in batches.images}
    assert held_out.isdisjoint(im.tobytes() for im in RankBatches('train', 1, 1, 0).images)
    assert len(batches.images) + len(RankBatches('train', 1, 1, 0).images) == len(images) == 1797
    batches.images = np.ones_like(batches.images) * batches.labels[:, None, None]  # pixels tell the digit
    import scalenet_mm.experiments.study.rank as rank

    noise, contrast, rank.NOISE, rank.CONTRAST = rank.NOISE, rank.CONTRAST, 0.0, (1.0, 1.0)
    try:
        batch = batches[1]
    finally:
        rank.NOISE, rank.CONTRAST = noise, contrast
    pixels = batch['inputs'] * rank.STD + rank.MEAN
    assert pixels.shape == (5, 1, 32, 32)
    for scene, ranks in zip(pixels[:, 0], batch['data_samples']):
        digits = [round(float(scene[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].max())) for r in range(4) for c in range(4)]
        assert ranks.tolist() == [sum(other < mine for other in digits) for mine in digits]


def test_batches_depend_on_seed_and_index_alone():
    a, b = RankBatches('train', 9, 4, (1, 0)), RankBatches('train', 9, 4, (1, 0))
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(a[5]['inputs'], b[5]['inputs'])
    assert not torch.equal(a[5]['inputs'], a[6]['inputs'])
    assert not torch.equal(a[5]['inputs'], RankBatches('train', 9, 4, (1, 1))[5]['inputs'])


def test_top1_and_loss_are_those_of_all_cells():
    head, metric = RankHead(8), RankMetric()
    feats, ranks = (torch.randn(6, 8, 4, 4),), torch.randint(16, (6, 16))
    for part in (slice(0, 2), slice(2, 6)):
        metric.process(None, head.predict((feats[0][part],), ranks[part]))
    got = metric.evaluate(2)
    logits = torch.stack([head.fc(feats[0][:, :, r, c]) for r in range(4) for c in range(4)], 1).double()
    expected = -logits.log_softmax(-1).gather(-1, ranks[..., None]).mean()
    assert got['rank/loss'] == pytest.approx(float(expected), rel=1e-5)
    assert got['rank/top1'] == pytest.approx(100 * float((logits.argmax(-1) == ranks).double().mean()))
    assert float(head.loss(feats, ranks)['loss']) == pytest.approx(float(expected), rel=1e-5)


# ------------------------------------------------------------------------------- statistics


def test_the_interval_is_students():
    x = [1.3, 0.4, 2.2, 0.9, 1.1]
    low, high = scipy_stats.t.interval(0.95, 4, np.mean(x), scipy_stats.sem(x))
    found = interval(x)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(scipy_stats.ttest_1samp(x, 0).pvalue)
    assert holm([float('nan'), 0.01]) == [1.0, 0.02]
    assert np.isnan(interval([2.0]).half) and str(interval([2.0])) == '2.00'


def test_holm_rejects_as_the_step_down_procedure_does():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 6)
        rejected, order = set(), np.argsort(p)
        for k, i in enumerate(order):  # stop at the first that its own threshold keeps
            if p[i] > 0.05 / (6 - k):
                break
            rejected.add(int(i))
        assert {i for i, q in enumerate(holm(p.tolist())) if q <= 0.05} == rejected


def records(values: dict[str, list[float]]):
    return {
        (row, seed): dict(row=row, seed=seed, status='done', top1=v, loss=-v)
        for row, xs in values.items()
        for seed, v in enumerate(xs)
    }


def test_a_verdict_needs_an_interval_without_zero_and_a_corrected_p():
    base = [80.0, 81.0, 79.0, 80.5, 80.2]
    shift = dict(up=1.0, down=-1.0)
    noise = [0.1, -0.1, 0.05, 0.0, -0.05]
    values = {'h/base': base, 'h/noisy': [b + d for b, d in zip(base, [3, -2, 1, -1, 0])]}
    values |= {f'h/{k}': [b + d + n for b, n in zip(base, noise)] for k, d in shift.items()}
    claims = [Claim(k, f'h/{k}', 'h/base') for k in ('up', 'down', 'noisy')]
    assert [v.word for v in verdicts(records(values), claims)] == [REPRODUCED, NOT_REPRODUCED, UNDECIDED]
    # p = 0.03 alone; among ten claims it is not enough
    weak = [0.5, 1.2, 0.1, 1.4, 0.7]
    one = records({'h/base': base, 'h/weak': [b + w for b, w in zip(base, weak)]})
    claim = Claim('weak', 'h/weak', 'h/base')
    assert verdicts(one, [claim])[0].word == REPRODUCED
    assert {v.word for v in verdicts(one, [claim] * 10)} == {UNDECIDED}


def test_pairs_are_of_one_seed_and_failed_runs_do_not_count():
    found = records({'h/a': [3.0, 5.0, 9.0], 'h/b': [1.0, 4.0, 2.0]})
    found['h/b', 2]['status'] = 'failed'
    (verdict,) = verdicts(found, [Claim('', 'h/a', 'h/b')])
    assert verdict.top1.n == 2 and verdict.top1.mean == pytest.approx(1.5)


# ------------------------------------------------------------------------------- rows


def test_studies_and_claims_name_rows_and_every_row_is_in_a_study():
    studied = {key for keys in STUDIES.values() for key in keys}
    assert studied == set(ROWS)
    assert {c for claim in (*CLAIMS, *FOLLOW_UP) for c in (claim.better, claim.worse)} <= studied
    pilot = {row.key for row in PILOT}
    assert all(bool(pilot & set(keys)) == (name == 'pilot') for name, keys in STUDIES.items())
    printed = {row.key for row in PAPER}
    assert not {row.key: row.paper for row in ROWS.values() if row.paper and row.paper not in printed}


def test_a_digest_changes_with_the_row_and_the_source_it_starts_from():
    row = ROWS['deit/on']
    others = {digest(ROWS['deit/on_time']), digest(shortened(row, 2))}
    other_source = replace(row, source=replace(row.source, lr=1e-5))
    assert len({digest(row), digest(other_source), *others}) == 4


def test_jobs_come_sources_first_each_once():
    jobs = jobs_of([ROWS[f'deit/{name}'] for name in ('on', 'scratch', 'source', 'on')], [0, 1])
    names = [(j.row, j.seed) for j in jobs]
    assert len(names) == len(set(names)) == 6
    assert all(j.needs is None or names.index((j.needs.row, j.needs.seed)) < i for i, j in enumerate(jobs))
    assert {j.row for j in jobs if j.needs} == {'deit/on'}


# ------------------------------------------------------------------------------- the pool


def fake_train(job, folder, source):
    """A run in a real process that ends as its row says."""
    with (folder.parents[1] / 'started').open('a') as f:
        f.write(f'{job.row}{job.seed} from {source}\n')
    if job.row == 'dies':
        os.kill(os.getpid(), 9)
    if job.row == 'fails':
        raise ValueError('on purpose')
    return dict(checkpoint=f'{job.folder}/x.pth', minutes=0.1)


def small_jobs():
    source, bad = Job('source', 0, 'd'), Job('dies', 0, 'd')
    return [source, bad, Job('fails', 0, 'd'), Job('good', 0, 'd', needs=source), Job('orphan', 0, 'd', needs=bad)]


def test_a_run_that_dies_or_fails_is_recorded_and_costs_no_other(tmp_path):
    told = []
    found = run_all(small_jobs(), tmp_path, fake_train, at_once=2, tell=told.append)
    assert {k[0]: r['status'] for k, r in found.items()} == {
        'source': 'done',
        'dies': 'failed',
        'fails': 'failed',
        'good': 'done',
    }
    assert 'ended with code -9' in found['dies', 0]['error']
    assert found['fails', 0]['error'] == 'ValueError: on purpose'
    assert f'good0 from {tmp_path}/source/seed0/x.pth' in (tmp_path / 'started').read_text()
    assert any('orphan/seed0 left out: dies/seed0 failed' in line for line in told)
    assert len(read_results(tmp_path / RESULTS)) == 4

    # again: only what is not done, a half-written line of a killed process notwithstanding
    with (tmp_path / RESULTS).open('a') as f:
        f.write('{"row": "goo')
    (tmp_path / 'started').unlink()
    run_all(small_jobs(), tmp_path, fake_train, at_once=2, tell=told.append)
    assert sorted(line.split()[0] for line in (tmp_path / 'started').read_text().splitlines()) == ['dies0', 'fails0']
    lines = (tmp_path / RESULTS).read_text().splitlines()
    assert [line for line in lines if line == '{"row": "goo'] and len(read_results(tmp_path / RESULTS)) == 6


def test_two_calls_in_one_folder_are_refused(tmp_path):
    with alone(tmp_path), pytest.raises(SystemExit, match='Another call is running'):
        run_all([], tmp_path, fake_train, tell=str)


def test_a_record_of_other_settings_is_run_again(tmp_path):
    run_all([Job('good', 0, 'old')], tmp_path, fake_train, tell=str)
    run_all([Job('good', 0, 'new')], tmp_path, fake_train, tell=str)
    assert [r['digest'] for r in read_results(tmp_path / RESULTS)] == ['old', 'new']


# ------------------------------------------------------------------------------- the tool


def study(*args: str, **kw):
    return subprocess.run(
        scalenet('experiment', 'study', *args), capture_output=True, text=True, cwd=ROOT, timeout=600, **kw
    )


def test_the_tool_trains_compares_and_continues(tmp_path):
    args = ('start', '--shorten', 100, '--seeds', 2, '--jobs', 2, '--work-dir', tmp_path)
    done = study(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    root = tmp_path / 'demo_100_times_shorter'
    found = latest(read_results(root / RESULTS))
    assert {k for k, _ in found} == {f'deit/{r}' for r in ('source', 'on', 'scalenet', 'function')}
    assert all(r['status'] == 'done' and 0 < r['top1'] < 100 for r in found.values())
    scaled, source = found['deit/scalenet', 0], found['deit/source', 0]
    width, hidden, rank = 64, 256, 4
    assert scaled['params'] - source['params'] == 6 * 2 * rank * (width + hidden) + 3 * 4 * width
    text = (root / 'start.md').read_text()
    assert 'function-preserving start | 2 |' in text
    assert (root / 'start.png').stat().st_size > 10_000
    assert 'the function-preserving start is better' in (root / 'claims.md').read_text()

    lines = (root / RESULTS).read_text()
    refused = study(*args)
    assert refused.returncode == 2 and '--resume' in refused.stderr
    again = study(*args, '--resume')
    assert again.returncode == 0 and '8 runs, 8 of them done before.' in again.stdout
    assert (root / RESULTS).read_text() == lines


@pytest.mark.parametrize(
    'args, message',
    [
        (('table9x',), 'invalid choice'),
        (('table8',), 'at paper scale only'),
        (('start', '--scale', 'paper'), 'at demo scale only'),
        (('table5', '--first-seed', '100'), 'chose the learning rates'),
        (('table5', '--seeds', '0'), 'at least 1'),
        (('table5', '--shorten', '0'), 'from 1 on'),
        (('pilot', 'table5'), 'run it by itself'),
        (('table5', '--report'), 'has no run of these rows yet'),
    ],
)
def test_wrong_calls_are_refused_before_anything_runs(args, message, tmp_path, capsys):
    code = ''
    try:
        code = main(['experiment', 'study', *args, '--work-dir', str(tmp_path)])
    except SystemExit as e:
        code = e.code
    told = capsys.readouterr()
    assert code and message in f'{code}{told.out}{told.err}'
    assert not list(tmp_path.iterdir())


def test_paper_scale_runs_each_config_once_and_records_what_is_missing(tmp_path):
    jobs = paper_scale.jobs(['table1', 'table2'], [0])
    named = {r.config for s in ('table1', 'table2') for r in paper_scale.STUDIES[s]}
    assert {j.row for j in jobs} == named and len(jobs) == len(named)
    env = {k: v for k, v in os.environ.items() if not k.startswith('SCALENET_')}
    env['SCALENET_COCO_ROOT'] = str(tmp_path / 'nowhere')
    job = next(j for j in paper_scale.jobs(['table8'], [0], ('--cpu', '--gpus', '1')) if 'scalenet' in j.row)
    os.environ.update(env)
    found = run_all([job], tmp_path, paper_scale.train, tell=str)
    (record,) = found.values()
    assert record['status'] == 'failed' and 'reproduce table8/' in record['error']


def test_every_committed_record_is_of_a_row_as_it_is_today():
    """So the pages can be written again from them; a move of the code or another spelling is not another run."""
    records = read_results(Path(__file__).parents[1] / 'docs' / 'results' / 'evidence' / RESULTS)
    assert len(records) > 100
    assert {r['row'] for r in records if r['digest'] != digest(ROWS[r['row']])} == set()
