"""The study: its task, its statistics, its rows, and runs that stop, crash and continue."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import scalenet
from scipy import stats as scipy_stats
from sklearn.datasets import load_digits

from scalenet_mm.commands.main import main
from scalenet_mm.experiments.paper.recount import ROWS as PAPER
from scalenet_mm.experiments.study import gradient_curves, paper_scale, pays, rank, runs
from scalenet_mm.experiments.study.claims import (
    EARLY,
    FAMILIES,
    NO_DIFFERENCE,
    NOT_REPRODUCED,
    PRIMARY,
    REPRODUCED,
    UNDECIDED,
    Claim,
    Family,
    verdicts,
)
from scalenet_mm.experiments.study.evidence_page import pilot_spread, short_tables, told, verdict_lines
from scalenet_mm.experiments.study.pool import (
    RESULTS,
    Diverged,
    Job,
    alone,
    conduct,
    latest,
    read_results,
    records_of,
    run_all,
)
from scalenet_mm.experiments.study.rank import RankBatches, RankHead, RankMetric
from scalenet_mm.experiments.study.rows import OWN_RATES
from scalenet_mm.experiments.study.runs import HELD_OUT, PRETRAINING, TRAINING, digest, jobs_of, shortened
from scalenet_mm.experiments.study.stats import detectable, holm, interval, seeds_needed
from scalenet_mm.experiments.study.studies import PILOT_ROWS, PILOTS, ROWS, SEEDS, STUDIES

ROOT = Path(__file__).parents[1]


# ------------------------------------------------------------------------------- the task


def test_a_label_is_the_number_of_cells_with_a_smaller_digit(monkeypatch):
    batches = RankBatches('val', 3, 5, seed=(7, 2))
    images = load_digits().images / 16
    held_out = {im.tobytes() for im in batches.images}
    assert held_out.isdisjoint(im.tobytes() for im in RankBatches('train', 1, 1, 0).images)
    assert len(batches.images) + len(RankBatches('train', 1, 1, 0).images) == len(images) == 1797
    batches.images = np.ones_like(batches.images) * batches.labels[:, None, None]  # pixels tell the digit
    for name in ('NOISE', 'SHIFT', 'SHEAR', 'SCALE', 'DEGREES'):
        monkeypatch.setattr(rank, name, 0.0)
    monkeypatch.setattr(rank, 'CONTRAST', (1.0, 1.0))
    batch = batches[1]
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


def test_a_warp_turns_shears_and_moves_as_opencv_does(monkeypatch):
    """One known warp at a time: a digit turned by 10 degrees is what another library makes of it."""
    images = RankBatches('train', 1, 1, 0).images[:50]
    for name in ('SHIFT', 'SHEAR', 'SCALE'):
        monkeypatch.setattr(rank, name, 0.0)
    rng = np.random.default_rng(4)
    angles = np.random.default_rng(4).uniform(-1, 1, (2, 50))[0] * rank.DEGREES
    assert np.abs(angles).max() > 8
    for got, image, angle in zip(rank.warp(images, rng), images, angles):
        # a map from target to source by a turn of +angle in (x, y) shows the image turned the other way
        matrix = cv2.getRotationMatrix2D((3.5, 3.5), float(angle), 1.0)
        expected = cv2.warpAffine(image, matrix, (8, 8), flags=cv2.INTER_LINEAR)
        assert np.abs(got - expected).max() < 0.05  # OpenCV rounds positions to 1/32 of a pixel
    monkeypatch.setattr(rank, 'DEGREES', 0.0)
    for what, amount in (('SHEAR', 0.3), ('SCALE', 0.3), ('SHIFT', 1.5)):
        monkeypatch.setattr(rank, what, amount)
        rng = np.random.default_rng(4)
        shear = rng.uniform(-1, 1, (2, 50))[1] * rank.SHEAR
        size = np.exp(rng.uniform(-rank.SCALE, rank.SCALE, (2, 50)))
        move = rng.uniform(-rank.SHIFT, rank.SHIFT, (50, 2))
        assert max(np.abs(shear).max(), np.abs(size - 1).max(), np.abs(move).max()) > 0.2
        warped = rank.warp(images, np.random.default_rng(4))
        for k, (got, image) in enumerate(zip(warped, images)):
            # where in the image, from its middle, a pixel of the result is taken
            linear = np.array([[size[0, k], shear[k] * size[0, k]], [0, size[1, k]]])
            matrix = np.c_[linear, 3.5 - linear @ [3.5, 3.5] + move[k]]
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            expected = cv2.warpAffine(image, matrix, (8, 8), flags=flags)
            assert np.abs(got - expected).max() < 0.06, what
        monkeypatch.setattr(rank, what, 0.0)
    assert np.array_equal(rank.warp(images, np.random.default_rng(0)), images)


def test_fixed_scenes_come_once_an_epoch_in_another_order_and_never_twice_the_same():
    data = RankBatches('train', 9, 40, (3, PRETRAINING), scenes=100)
    orders = [data._order(i) for i in range(5)]  # two epochs of 100 in five batches of 40
    first, second = np.split(np.concatenate(orders), 2)
    assert sorted(first) == sorted(second) == list(range(100)) and not np.array_equal(first, second)
    at = {int(scene): (i // 40, i % 40) for i, scene in enumerate(first)}
    again = {int(scene): ((100 + i) // 40, (100 + i) % 40) for i, scene in enumerate(second)}
    for scene in (0, 17, 99):
        (b, i), (c, j) = at[scene], again[scene]
        one, other = data[b], data[c]
        assert torch.equal(one['data_samples'][i], other['data_samples'][j])  # the same digits
        assert not torch.equal(one['inputs'][i], other['inputs'][j])  # drawn anew
    later = RankBatches('train', 9, 40, (3, TRAINING), scenes=100)
    assert np.array_equal(later.layouts, data.layouts)  # the source and what starts from it share the set
    assert not np.array_equal(RankBatches('train', 9, 40, (4, TRAINING), scenes=100).layouts, data.layouts)


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


def judged(found, *claims, seeds=5, tests=None):
    """Words of claims (better, worse...), in a family with others that have not run."""
    claims = tuple(Claim('', better, tuple(worse)) for better, *worse in claims)
    others = tuple(Claim('', 'h/never', ('h/base',)) for _ in range((tests or len(claims)) - len(claims)))
    return [v.word for v in verdicts(found, Family('', seeds, claims + others))]


BASE = [80.0, 81.0, 79.0, 80.5, 80.2]


def shifted(differences):
    return [b + d for b, d in zip(BASE, differences)]


def test_a_verdict_needs_an_interval_without_zero_and_a_corrected_p():
    found = records(
        {
            'h/base': BASE,
            'h/noisy': shifted([3, -2, 1, -1, 0]),
            'h/up': shifted([1.1, 0.9, 1.05, 1.0, 0.95]),
            'h/down': shifted([-0.9, -1.1, -0.95, -1.0, -1.05]),
            'h/weak': shifted([0.5, 1.2, 0.1, 1.4, 0.7]),  # p = 0.03 alone; among ten claims it is not enough
        }
    )
    claims = [(f'h/{row}', 'h/base') for row in ('up', 'down', 'noisy')]
    assert judged(found, *claims) == [REPRODUCED, NOT_REPRODUCED, UNDECIDED]
    weak = ('h/weak', 'h/base')
    assert judged(found, weak) == [REPRODUCED] and judged(found, weak, tests=10) == [UNDECIDED]
    assert judged(found, weak, seeds=6) == [EARLY]  # looking early must not decide


def test_a_narrow_interval_around_nothing_decides_that_there_is_no_difference():
    near = shifted([0.05, -0.04, 0.0, 0.03, -0.02])
    found = records({'h/base': BASE, 'h/near': near, 'h/edge': shifted([0.18, 0.0, 0.08, 0.14, 0.04])})
    assert judged(found, ('h/near', 'h/base')) == [NO_DIFFERENCE]
    # 0.09 +- 0.09 reaches over 0.15 and over 0
    assert judged(found, ('h/edge', 'h/base')) == [UNDECIDED]


def test_the_best_of_several_rows_is_the_one_to_beat():
    found = records({'h/base': BASE, 'h/low': [x - 1 for x in BASE], 'h/mine': shifted([0.5, 0.52, 0.49, 0.51, 0.48])})
    family = Family('', 5, (Claim('', 'h/mine', ('h/low', 'h/base')),))
    (verdict,) = verdicts(found, family)
    assert verdict.worse == 'h/base' and verdict.top1.mean == pytest.approx(0.5)
    del found['h/base', 3]  # a seed that one of them lacks counts for none
    assert verdicts(found, family)[0].top1.n == 4


def test_pairs_are_of_one_seed_and_failed_runs_do_not_count():
    found = records({'h/a': [3.0, 5.0, 9.0], 'h/b': [1.0, 4.0, 2.0]})
    found['h/b', 2]['status'] = 'diverged'
    (verdict,) = verdicts(found, Family('', 3, (Claim('', 'h/a', ('h/b',)),)))
    assert verdict.failed == 1 and verdict.top1.n == 2 and verdict.top1.mean == pytest.approx(1.5)


def test_a_seed_on_which_any_rival_diverged_counts_once_and_one_that_failed_not():
    rivals = {'h/a': [3.0, 5.0, 4.1], 'h/b': [1.0, 3.1, 2.0], 'h/c': [0.0, 0.0, 0.0]}
    claim, found = Claim('', 'h/a', ('h/b', 'h/c')), records(rivals)
    found['h/c', 1]['status'] = 'diverged'
    (verdict,) = verdicts(found, Family('', 4, (claim,)))
    assert (verdict.top1.n, verdict.failed, verdict.word) == (2, 1, EARLY) and verdict.worse == 'h/b'
    (verdict,) = verdicts(found, Family('', 3, (claim,)))
    assert (verdict.top1.n, verdict.failed) == (2, 1) and verdict.word != EARLY
    found['h/c', 1]['status'] = 'failed'  # it is run again
    (verdict,) = verdicts(found, Family('', 3, (claim,)))
    assert (verdict.top1.n, verdict.failed, verdict.word) == (2, 0, EARLY)


def test_what_is_seen_early_of_a_claim_decides_no_other():
    """The smallest p of two needs 2.5 %, whatever the other's few seeds say so far."""
    sure = {'h/a': [10.0, 10.3, 10.1, 10.4], 'h/b': [9.9, 10.0, 10.0, 10.15], 'h/c': [1.0, 1.1]}
    claims = Claim('', 'h/a', ('h/b',)), Claim('', 'h/a', ('h/c',))
    verdict, early = verdicts(records(sure), Family('', 4, claims))
    assert early.word == EARLY and verdict.p == pytest.approx(2 * verdict.top1.p)
    assert 0.025 < verdict.top1.p < 0.05 and verdict.word == UNDECIDED


def test_the_power_that_is_printed_is_the_share_of_trials_that_find_it():
    rng, seeds, tests, spread = np.random.default_rng(0), 10, 8, 0.2
    trials = rng.normal(detectable(spread, seeds, tests), spread, (4000, seeds))
    found = (scipy_stats.ttest_1samp(trials, 0, axis=1).pvalue <= 0.05 / tests).mean()
    assert 0.79 < found < 0.82
    for mean in (0.3, 0.1, 0.0):
        n = seeds_needed(spread, mean, 0.15, tests)
        for seeds, enough in ((n + 1, True), (n - 2, False)):
            trials = rng.normal(mean, spread, (8000, seeds))
            half = scipy_stats.t.ppf(0.975, seeds - 1) * scipy_stats.sem(trials, axis=1)
            found = scipy_stats.ttest_1samp(trials, 0, axis=1).pvalue <= 0.05 / tests
            share = (found | (abs(trials.mean(1)) + half < 0.15)).mean()
            assert (share >= 0.8) == enough


def test_a_claim_is_judged_on_its_familys_seeds_those_that_failed_being_known():
    found = records({'h/a': [3.0, 5.0, 4.1, 9.0, 9.0], 'h/b': [1.0, 3.1, 2.0, 9.0, 9.0]})
    assert judged(found, ('h/a', 'h/b'), seeds=3) == [REPRODUCED]
    (verdict,) = verdicts(found, Family('', 3, (Claim('', 'h/a', ('h/b',)),)))
    assert verdict.top1.n == 3, 'more seeds than planned do not count'
    found = records({'h/a': [3.0, 5.0, 4.1], 'h/b': [1.0, 3.1, 2.0]})
    assert judged(found, ('h/a', 'h/b'), seeds=4) == [EARLY]
    found['h/b', 3] = dict(row='h/b', seed=3, status='diverged', error='')
    assert judged(found, ('h/a', 'h/b'), seeds=4) == [REPRODUCED]
    with pytest.raises(ValueError, match='not a number'):
        interval([1.0, float('nan')])


def test_the_power_beside_a_claim_is_that_of_its_own_spread_and_before_of_the_pilots():
    # against ScaleNet: 0, 2, 4 points in one row, the same in three: 8 over 2 x 4 degrees of freedom
    level = {'scalenet': [70.0, 70.0, 70.0], 'on': [70.0, 72.0, 74.0]}
    pilot = {
        f'deit/{row}': level.get(row, [69.0] * 3) for row in ('on', 'stack', 'tied', 'scalenet', 'scalenet_increments')
    }
    pilot = {(row, 100 + seed): r for (row, seed), r in records(pilot).items()}
    assert pilot_spread(pilot) == pytest.approx(1.0)
    lines = verdict_lines({}, PRIMARY, 1.0)
    assert {line[-2] for line in lines} == {f'{detectable(1.0, 10, 8):.2f}'}, 'known before a seed is drawn'
    assert {line[-2] for line in verdict_lines({}, PRIMARY, pilot_spread({}))} == {'–'}
    seen = records({'deit/scalenet': [70.0, 71.0, 73.0], 'deit/on': [69.0, 69.0, 69.0]})
    assert verdict_lines(seen, PRIMARY, 1.0)[0][-2] == f'{detectable(np.std([1, 2, 4], ddof=1), 10, 8):.2f}'


def test_what_other_families_say_of_a_primary_claim_stands_beside_it():
    by_short = {family.short: family for family in FAMILIES}
    own, swin, fixed = (by_short[name] for name in ('rivals at their own rates', 'Swin', '5,000 fixed scenes'))
    of = {claim.worse[-1].removeprefix('deit/'): claim for claim in PRIMARY.claims}
    asked = {name: own.again(claim) and own.again(claim).worse for name, claim in of.items()}
    assert asked == {
        'on': None,
        'on_time': ('deit/on_time_own_rate',),
        'swa': ('deit/interpolate_own_rate',),
        'tied': None,
        'adapter': ('deit/adapter',),
        'stacked': ('deit/stacked_own_rate',),
        'times3': ('deit/times3_own_rate',),
        'scratch3': None,
    }
    assert swin.again(of['swa']).worse == ('swin/stack',) and swin.again(of['stacked']) is None
    assert [fixed.again(claim) for claim in of.values()] == list(fixed.claims[: len(of)])

    better = {f'deit5000/{name}': [71.0, 72.0] for name in ('scalenet', 'tied')}
    table = short_tables(records({**better, 'deit5000/on': [70.5, 70.5]}), 1.0)[1].splitlines()
    assert table[0] == '| claim | 5,000 fixed scenes, 5 seeds |' and len(table) == 2 + len(of)
    assert table[2].endswith('| +1.00 ± 6.35, 2 seeds |') and table[5].endswith('| +0.00 ± 0.00, 2 seeds |')
    assert table[3].endswith('| not run |'), 'asked of this family, and no seed of it is there'
    assert short_tables(records({'swin/scalenet': [1.0, 2.0], 'swin/on': [0.0, 0.0]}), 1.0)[1].count('not asked') == 3
    (verdict,) = verdicts(
        records({'h/a': [2.0, 3.0, 4.0], 'h/b': [1.0, 2.0, 3.1]}), Family('', 3, (Claim('', 'h/a', ('h/b',)),))
    )
    assert told(verdict) == '+0.97 ± 0.14, **reproduced**' and told(verdict, 4) == '+0.97 ± 0.14 (b), **reproduced**'


# ------------------------------------------------------------------------------- rows


def test_studies_and_claims_name_rows_and_every_row_is_in_a_study():
    studied = {key for keys in STUDIES.values() for key in keys}
    assert studied == set(ROWS)
    claims = [claim for family in FAMILIES for claim in family.claims]
    assert {row for claim in claims for row in claim.rows} <= studied
    pilot = {row.key for row in PILOT_ROWS}
    assert not {name for name, keys in STUDIES.items() if name not in PILOTS and pilot & set(keys)}
    printed = {row.key for row in PAPER}
    assert not {row.key: row.paper for row in ROWS.values() if row.paper and row.paper not in printed}
    assert {key for claim in claims for key in claim.paper} <= printed
    assert all(len(claim.paper) in (0, len(claim.rows)) for claim in claims)
    assert len(PRIMARY.claims) <= 8 and PRIMARY.seeds >= 10


def test_a_claims_rows_are_run_on_the_seeds_of_its_family():
    for family in FAMILIES:
        ran = {key for name, keys in STUDIES.items() if SEEDS[name] == SEEDS[family.study] for key in keys}
        assert {row for claim in family.claims for row in claim.rows} <= ran, family.title
    assert SEEDS.keys() == STUDIES.keys()
    found = records({'h/a': [3.0, 5.0, 4.1], 'h/b': [1.0, 3.1, 2.0]})
    later = Family('', 3, (Claim('', 'h/a', ('h/b',)),), study='increments')
    assert not verdicts(found, later), 'those seeds started from other sources'
    assert verdicts({(row, 50 + seed): r for (row, seed), r in found.items()}, later)[0].word == REPRODUCED


def test_a_row_of_a_fixed_set_has_the_epochs_of_the_paper_and_a_source_of_its_own():
    for scenes in (2_000, 5_000, 20_000):
        row = ROWS[f'deit{scenes}/scalenet']
        assert 100 <= row.steps * 128 / scenes < 104 and row.source.steps == 3 * row.steps
        assert row.source.scenes == row.scenes == scenes
        cfg = runs.config(replace(row, drop_path=0.3), 7, Path('.'), 'source.pth')
        assert cfg.train_dataloader.dataset.scenes == scenes
        assert cfg.model.backbone.drop_path_rate == 0.3 and row.drop_path == 0
        assert cfg.val_dataloader.dataset.get('scenes', 0) == 0 and cfg.val_dataloader.dataset.seed == (7, HELD_OUT)


def test_a_digest_changes_with_the_row_and_the_source_it_starts_from():
    row = ROWS['deit/on']
    others = {digest(ROWS['deit/on_time']), digest(shortened(row, 2))}
    other_source = replace(row, source=replace(row.source, lr=1e-5))
    assert len({digest(row), digest(other_source), *others}) == 4


def test_jobs_come_sources_first_each_once():
    rows = [ROWS[f'deit/{name}'] for name in ('on', 'scratch', 'source', 'on')]
    jobs = jobs_of(product(rows, [0, 1]))
    names = [(j.row, j.seed) for j in jobs]
    assert [seed for _, seed in names] == [0, 0, 0, 1, 1, 1]  # a seed is done before the next begins
    assert len(names) == len(set(names)) == 6
    assert all(j.needs is None or names.index((j.needs.row, j.needs.seed)) < i for i, j in enumerate(jobs))
    assert {j.row for j in jobs if j.needs} == {'deit/on'}


def test_where_it_pays_compares_each_place_with_training_on_there(tmp_path):
    rows = {pays.key(at, name) for places in pays.PANELS.values() for at in places.values() for name in pays.LINES}
    fixed = {key for key in rows if ROWS[key].scenes}
    assert rows - fixed < set(STUDIES['pays']) and fixed <= {key for n in pays.SETS for key in STUDIES[f'fixed{n}']}
    assert {ROWS[key].rate for key in rows if '/on_time' in key} == {OWN_RATES['on_time']}
    level = {'deit/on_of_3000': [70.0, 71.0], 'deit/scalenet_of_3000': [72.0, 73.5], 'deit/on': [75.0]}
    found = pays.gains(records(level))
    assert found['steps of the source']['3,000'].keys() == {'scalenet'}
    assert found['steps of the source']['3,000']['scalenet'].mean == pytest.approx(2.25)
    assert not any(found['steps of the source']['12,000'].values()), 'one row is no comparison'
    (page,) = pays.report(records(level), tmp_path, tmp_path, 'a command')
    assert '| 3,000 | +2.25 ± 3.18 | not run | not run | 2 |' in page.read_text()
    assert (tmp_path / 'pays.png').stat().st_size > 10_000
    assert not list(pays.report(records({'deit/on': [75.0]}), tmp_path, tmp_path, 'a command'))


def test_the_page_shows_the_claims_as_the_records_judge_them():
    docs = Path(__file__).parents[1] / 'docs'
    root = docs / 'results' / 'evidence' / 'demo'
    found = records_of(runs.jobs({name: seeds[: PRIMARY.seeds] for name, seeds in SEEDS.items()}), root)
    primary, elsewhere, costs = short_tables(found, pilot_spread(found))
    shown = {docs / 'evidence.md': [primary], docs / 'evidence_details.md': [elsewhere, costs]}
    for page, tables in {**shown, root.parent / 'claims.md': [primary, elsewhere, costs]}.items():
        assert all(table in page.read_text() for table in tables), f'{page} is not of these records: make it again'


# ------------------------------------------------------------------------------- the pool


def fake_train(job, folder, source):
    """A run in a real process that ends as its row says."""
    with (folder.parents[1] / 'started').open('a') as f:
        f.write(f'{job.row}{job.seed} from {source}\n')
    if job.row == 'dies':
        os.kill(os.getpid(), 9)
    if job.row == 'fails':
        raise ValueError('on purpose')
    if job.row == 'diverges':
        raise Diverged('the loss is nan')
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


def test_a_run_that_diverged_and_what_starts_from_it_are_failures_that_are_not_tried_again(tmp_path):
    source = Job('diverges', 0, 'd')
    jobs = [source, Job('good', 0, 'd', needs=source), Job('fails', 0, 'd')]
    for tries in (['diverges0', 'fails0'], ['fails0']):
        found = run_all(jobs, tmp_path, fake_train, tell=str)
        assert [line.split()[0] for line in (tmp_path / 'started').read_text().splitlines()] == tries
        assert {k[0]: r['status'] for k, r in found.items()} == dict(
            diverges='diverged', good='diverged', fails='failed'
        )
        (tmp_path / 'started').unlink()
    assert found['good', 0]['error'] == 'diverges/seed0 diverged'


def test_a_source_whose_checkpoint_is_gone_is_made_again_for_those_that_need_it_alone(tmp_path):
    sources = [Job('source', seed, 'd') for seed in (0, 1)]
    rows = [Job('good', source.seed, 'd', needs=source) for source in sources]
    run_all([*sources, rows[0]], tmp_path, fake_train, tell=str)  # leaves no checkpoints
    (tmp_path / 'started').unlink()
    told = []
    run_all([*sources, *rows], tmp_path, fake_train, tell=told.append)
    assert told[0] == '4 runs, 2 of them done before.'
    assert [line.split()[0] for line in (tmp_path / 'started').read_text().splitlines()] == ['source1', 'good1']

    (tmp_path / 'started').unlink()
    (tmp_path / 'source' / 'seed1' / 'x.pth').touch()
    run_all([*sources, *rows, Job('other', 1, 'd', needs=sources[1])], tmp_path, fake_train, tell=told.append)
    assert [line.split()[0] for line in (tmp_path / 'started').read_text().splitlines()] == ['other1']


def freed_memory_that_stays(job, folder, source):
    """MB that a process still holds after some steps, each of which takes 112 MB in four pieces and frees them.

    Taken from the C library itself: small pieces of torch or Python between them would keep it from giving any back.
    """
    libc, size = ctypes.CDLL(None), 28 * 2**20
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    resident = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()  # noqa: E731
    before = resident()
    for _ in range(4):
        pieces = [libc.malloc(size) for _ in range(4)]
        for piece in pieces:
            ctypes.memset(piece, 1, size)
        for piece in reversed(pieces):
            libc.free(piece)
    return dict(minutes=0, kept=(resident() - before) / 2**20)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'mallopt'), reason='of the GNU C library')
def test_a_step_finds_the_memory_that_the_one_before_freed(tmp_path):
    found = run_all([Job('a', 0, 'd')], tmp_path, freed_memory_that_stays)
    assert found['a', 0]['kept'] > 100, 'of 112 MB'


def test_a_call_fails_by_its_own_runs_alone(tmp_path, capsys):
    jobs, others = [Job('source', 0, 'd')], [Job('fails', 0, 'd')]
    run_all([*jobs, *others], tmp_path, fake_train, tell=str)
    page = tmp_path / 'page.md'
    assert conduct(jobs, tmp_path, fake_train, '', lambda records: [page], run=False, shown=others) == 0
    assert 'FAILED' not in capsys.readouterr().err
    assert conduct(others, tmp_path, fake_train, '', lambda records: [page], run=False, shown=jobs) == 1
    assert 'FAILED: fails seed 0: ValueError: on purpose' in capsys.readouterr().err


def test_a_call_beside_runs_of_other_settings_says_how_many_would_be_run_again(tmp_path, capsys):
    root = tmp_path / 'demo'
    root.mkdir()
    source, on, *_ = runs.jobs({'start': [50]})
    lines = [
        dict(row=source.row, seed=50, digest=source.digest, status='done'),
        dict(row=on.row, seed=50, digest='of another version', status='done'),
        dict(row='deit/swa', seed=0, digest='d', status='done'),
    ]
    (root / RESULTS).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert main(['experiment', 'study', 'start', '--work-dir', str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert 'has 1 of these 4 runs, and 1 runs of these rows with other settings, which would be run again;' in told


def test_a_page_names_the_command_that_makes_it(tmp_path, capsys):
    root = tmp_path / 'demo_100_times_shorter'
    root.mkdir()
    _, on, *_ = runs.jobs({'start': [53]}, 100)
    numbers = dict.fromkeys(('top1', 'loss', 'seen_top1', 'params', 'trainable', 'mflops', 'cpu_minutes'), 1)
    line = dict(row=on.row, seed=53, digest=on.digest, status='done', **numbers)
    (root / RESULTS).write_text(json.dumps(line))
    args = ('start', '--first-seed', '53', '--shorten', '100', '--report', '--work-dir', str(tmp_path))
    assert main(['experiment', 'study', *args]) == 0
    made_by = 'Made by `scalenet experiment study start --scale demo --first-seed 53 --shorten 100'
    assert made_by in (root / 'start.md').read_text()


def test_two_calls_in_one_folder_are_refused(tmp_path):
    with alone(tmp_path / 'demo_100_times_shorter'):
        refused = study('start', '--shorten', 100, '--work-dir', tmp_path)
    assert refused.returncode == 2 and f'a run goes on in {tmp_path}' in refused.stderr
    assert f'process {os.getpid()} on' in refused.stderr and not list(tmp_path.rglob('console.log'))


def test_a_record_of_other_settings_is_run_again(tmp_path):
    run_all([Job('good', 0, 'old')], tmp_path, fake_train, tell=str)
    run_all([Job('good', 0, 'new')], tmp_path, fake_train, tell=str)
    assert [r['digest'] for r in read_results(tmp_path / RESULTS)] == ['old', 'new']


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_result_of_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, 'SAVED_EVERY', 4)
    row = replace(ROWS['deit/scalenet'], steps=8, source=None)
    job = Job(row.key, 0, 'd', row)
    whole = runs.train(job, tmp_path / 'whole', None)
    drawn, get = [], RankBatches.__getitem__

    def stopped(self, index):
        drawn.append(index)
        if index == 6:
            raise KeyboardInterrupt
        return get(self, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RankBatches, '__getitem__', stopped)
        runs.train(job, tmp_path / 'stopped', None)
    assert (tmp_path / 'stopped' / 'd' / 'iter_4.pth').is_file()
    with monkeypatch.context() as patch:
        patch.setattr(RankBatches, '__getitem__', lambda s, i: drawn.append(i) or get(s, i))
        drawn.clear()
        rest = runs.train(job, tmp_path / 'stopped', None)
    assert drawn[:4] == [4, 5, 6, 7]
    assert (rest['top1'], rest['loss']) == (whole['top1'], whole['loss'])
    last = runs.train(job, tmp_path / 'stopped', None)  # as one that was stopped while it was evaluated
    assert {k: last[k] for k in ('top1', 'minutes', 'cpu_minutes')} == {
        k: rest[k] for k in ('top1', 'minutes', 'cpu_minutes')
    }
    assert {'cpu', 'versions'} <= rest['made_with'].keys()


# ------------------------------------------------------------------------------- the tool


def study(*args: str, **kw):
    return subprocess.run(
        scalenet('experiment', 'study', *args), capture_output=True, text=True, cwd=ROOT, timeout=600, **kw
    )


def test_a_run_whose_loss_is_not_a_number_has_diverged(tmp_path):
    row = replace(ROWS['deit/source'], steps=6, lr=1e30)
    (job,) = jobs_of([(row, 100)])
    with pytest.raises(Diverged, match=r'the loss is nan after 6 steps at a learning rate of 1e\+30'):
        runs.train(job, tmp_path, None)


@pytest.mark.slow
def test_gradient_norms_are_measured_on_the_checkpoints_of_their_runs(tmp_path):
    done = study('gradients', '--shorten', 100, '--seeds', 2, '--jobs', 2, '--work-dir', tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    root = tmp_path / 'demo_100_times_shorter'
    found = json.loads((root / 'gradients.json').read_text())
    assert all(len(norms) == 3 and min(norms) > 0 for seeds in found.values() for norms in seeds.values())
    assert {tuple(seeds) for seeds in found.values()} == {('0', '1')} and len(found) == 6
    (source, tied), wanted = (found[name]['0'] for name in ('source', 'tied x2, untrained')), (root / 'gradients.md')
    assert source != tied and f'{np.mean([np.mean(n) for n in found["source"].values()]):.2f}' in wanted.read_text()
    assert (
        f'--report --work-dir {tmp_path}' not in wanted.read_text() and (root / 'gradients.png').stat().st_size > 9999
    )
    again = study('gradients', '--shorten', 100, '--seeds', 2, '--report', '--work-dir', tmp_path)
    assert again.returncode == 0 and f'--report --work-dir {tmp_path}`' in wanted.read_text()
    assert json.loads((root / 'gradients.json').read_text()) == found


@pytest.mark.slow
def test_the_tool_trains_compares_and_continues(tmp_path):
    args = ('start', '--shorten', 100, '--seeds', 2, '--jobs', 2, '--work-dir', tmp_path)
    done = study(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    root = tmp_path / 'demo_100_times_shorter'
    found = latest(read_results(root / RESULTS))
    assert {k for k, _ in found} == {f'deit/{r}' for r in ('source', 'on', 'scalenet', 'function')}
    assert all(r['status'] == 'done' and 0 < r['top1'] < 100 for r in found.values())
    scaled, source = found['deit/scalenet', 50], found['deit/source', 50]
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
        (('table5', '--seeds', '51'), 'Seeds [50] are not those of table5, 0 to 49'),
        (('table5', 'pilot', '--first-seed', '100'), 'are not those of table5'),
        (('table5', '--seeds', '0'), 'from 1 on'),
        (('table5', '--shorten', '0'), 'from 1 on'),
        (('table5', '--shorten', '100000'), 'leaves less than two of the'),
        (('table5', '--report'), 'has nothing to show of these rows yet'),
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


def reproduces_by_a_script(job, folder, source):
    root = next(p for p in folder.parents if (p / 'child.py').exists())
    paper_scale.COMMAND = [sys.executable, str(root / 'child.py'), str(root / 'told')]
    return paper_scale.train(job, folder, source)


@pytest.mark.parametrize('config', ['mask_rcnn_scalenet_swin_t_1x.py', 'scalenet_deit_t_100e.py'])
def test_a_paper_scale_run_stays_the_same_where_its_data_lies_elsewhere(config, tmp_path, monkeypatch):
    found = set()
    for folder in ('', '/mnt/data', '/mnt/data/', f'{tmp_path}'):
        for name in ('COCO', 'IMAGENET'):
            monkeypatch.setenv(f'SCALENET_{name}_ROOT', folder) if folder else None
        paper_scale.digest.cache_clear()
        found.add(paper_scale.digest(config))
    paper_scale.digest.cache_clear()
    assert len(found) == 1


def test_pages_are_shown_where_other_rows_cannot_be_shortened_so_far(tmp_path, capsys):
    root = tmp_path / 'demo_300_times_shorter'
    root.mkdir()
    source, on, *_ = runs.jobs({'start': [53]}, 300)
    numbers = dict.fromkeys(('top1', 'loss', 'seen_top1', 'params', 'trainable', 'mflops', 'cpu_minutes'), 1)
    lines = [dict(row=job.row, seed=53, digest=job.digest, status='done', **numbers) for job in (source, on)]
    (root / RESULTS).write_text(''.join(json.dumps(line) + '\n' for line in lines))
    args = ('start', '--first-seed', '53', '--shorten', '300', '--report', '--work-dir', str(tmp_path))
    assert main(['experiment', 'study', *args]) == 0, capsys.readouterr().err
    assert (root / 'start.md').is_file()


def test_ratios_of_gradients_are_of_the_others_to_scalenet_and_judged_over_seeds():
    found = {gradient_curves.OURS: {0: [1.0, 3.0], 1: [2.0, 2.0], 2: [1.5, 2.5]}}
    for other, times in zip(gradient_curves.OTHERS, (2.0, 0.5, 1.0)):
        found[other] = {
            s: [times * (1 + 0.001 * s) * v for v in norms] for s, norms in found[gradient_curves.OURS].items()
        }
    lines = gradient_curves.judged(found)
    assert [line[1].split()[0] for line in lines] == ['2.00', '0.50', '1.00']
    assert [line[-1] for line in lines] == ['**reproduced**', '**not reproduced**', '**undecided**']
    one, *_ = gradient_curves.judged({name: {0: by_seed[0]} for name, by_seed in found.items()})
    assert one[1:] == ['2.00', '–', '**undecided**']


def test_a_paper_scale_run_with_other_options_is_another_and_the_page_names_them(tmp_path):
    (job, *_), (other, *_) = (paper_scale.jobs({'table8': [0]}, options) for options in ((), ('--cpu',)))
    assert job.row == other.row and job.digest != other.digest
    record = dict(status='done', metrics={'box AP': 1.0}, minutes=1.0, deviations=['run on the CPU'])
    (page,) = paper_scale.report(['table8'], {other.key: record}, tmp_path, tmp_path, 'a command')
    assert '| run on the CPU |' in page.read_text()


def test_hours_of_training_stand_beside_the_papers(tmp_path):
    (job, *_) = [j for j in paper_scale.jobs({'table7': [0]}) if 'scratch' not in j.row]
    record = dict(status='done', metrics={'top-1': 80.0}, minutes=90.0)
    (page,) = paper_scale.report(['table7'], {job.key: record}, tmp_path, tmp_path, 'a command')
    (line,) = [x for x in page.read_text().splitlines() if f'| {job.row} | hours |' in x]
    assert '| 1.50 |' in line


@pytest.mark.slow
def test_paper_scale_runs_each_config_once_and_records_what_is_missing(tmp_path, monkeypatch):
    jobs = paper_scale.jobs({'table1': [0], 'table2': [0]})
    named = {r.config for s in ('table1', 'table2') for r in paper_scale.STUDIES[s]}
    assert {j.row for j in jobs} == named and len(jobs) == len(named)
    monkeypatch.setenv('SCALENET_COCO_ROOT', str(tmp_path / 'nowhere'))
    job = next(j for j in paper_scale.jobs({'table8': [0]}, ('--cpu', '--gpus', '1')) if 'scalenet' in j.row)
    found = run_all([job], tmp_path, paper_scale.train, tell=str)
    (record,) = found.values()
    assert record['status'] == 'failed' and 'reproduce table8/' in record['error']


@pytest.mark.slow
def test_a_paper_scale_run_that_is_ended_ends_its_reproduction(tmp_path):
    """By SIGTERM, which it hands on to its own processes; a kill would leave those behind."""
    code = 'import pathlib, sys, time; p = pathlib.Path(sys.argv[1])\n'
    code += 'try: p.write_text("runs"); time.sleep(60)\n'
    code += 'finally: p.write_text("has ended its own")'
    (tmp_path / 'child.py').write_text(
        'import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n' + code
    )
    told = tmp_path / 'told'

    def stop():
        while not (told.is_file() and told.read_text() == 'runs'):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `conduct` does
    threading.Thread(target=stop, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_all(paper_scale.jobs({'table8': [0]})[:1], tmp_path, reproduces_by_a_script, tell=str)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told.read_text() == 'has ended its own'
