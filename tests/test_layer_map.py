"""g(l'): which source layer each scaled layer uses (Eq. 3, 5, 6)."""

import doctest

import pytest

from scalenet_mm.core import layer_map, roles, scale
from scalenet_mm.core.layer_map import LayerMap, stage_maps


@pytest.mark.parametrize('module', [layer_map, roles, scale])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.mark.parametrize('times', [1, 2, 3, 4])
@pytest.mark.parametrize('depth', [1, 5, 12])
def test_maps_follow_equations_3_and_6(depth, times):
    stack = LayerMap.build(depth, times, 'stack')
    interpolate = LayerMap.build(depth, times, 'interpolate')
    assert stack.sources == tuple(i % depth for i in range(depth * times))
    assert interpolate.sources == tuple(i // times for i in range(depth * times))


def test_partial_reuse_keeps_the_other_layers_once():
    # Table III, DeiT-B {4,5,6}: 1-based in the paper
    assert LayerMap.build(12, 2, 'interpolate', layers=(3, 4, 5)).sources == (
        0,
        1,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
    )
    assert LayerMap.build(12, 3, 'stack', layers=range(10, 12)).sources == (*range(12), 10, 11, 10, 11)


def test_stages_are_scaled_one_by_one():
    maps = stage_maps((2, 2, 18, 2), times=2, stages=(2, 3))
    assert [len(m) for m in maps] == [2, 2, 36, 4]
    assert [len(m) for m in stage_maps((2, 2, 6, 2), stages='all', times=3)] == [6, 6, 18, 6]
    assert [len(m) for m in stage_maps((2, 6, 2))] == [2, 6, 4], 'the last one, however many there are'
    explicit = stage_maps((2, 2, 6, 2), stages=(3,), sources={1: [0, 1, 1]})
    assert explicit[1].sources == (0, 1, 1) and explicit[3].sources == (0, 1, 0, 1)
    alone = stage_maps((2, 2, 6, 2), sources={1: [0, 1, 1]})
    assert [len(m) for m in alone] == [2, 3, 6, 2], 'no other stage was named'


@pytest.mark.parametrize('sources', [[0, 1, 0, 1], {'stages.3.blocks': [0, 1, 1]}, {4: [0, 1, 1]}, {-1: [0, 1, 1]}])
def test_sources_of_stages_that_name_none_are_refused_in_their_form(sources):
    with pytest.raises(ValueError, match=r'\{stage: \[layer, ...\]\} with stages of 0..3, got'):
        stage_maps((2, 2, 6, 2), sources=sources)


@pytest.mark.parametrize('layers', [(0,), (77,)])
def test_layers_that_nothing_reuses_are_refused(layers):
    with pytest.raises(ValueError, match='times=1 reuses nothing|0..1'):
        stage_maps((2, 2), times=1, layers=layers)


def test_the_live_instances_are_the_pretrained_network_in_its_order():
    for order in ('stack', 'interpolate'):
        for period in (1, 2):
            built = LayerMap.build(6, 2, order)
            live = built.live(period)
            assert [built.sources[i] for i in live] == list(range(6)) and list(live) == sorted(live)
            assert all((i - built.sources[i]) % period == 0 for i in live)


@pytest.mark.parametrize(
    ('kwargs', 'says'),
    [
        (dict(times=0.5), '>= 1'),
        (dict(times='2'), '>= 1'),
        (dict(times=1.3), 'the nearest is 16 layers, times=16/12'),
        (dict(order='random'), "('stack', 'interpolate')"),
        (dict(layers=(0, 12)), '0..11'),
        (dict(layers=(1, 1)), 'distinct'),
        (dict(layers=()), 'distinct'),
        (dict(layers='first'), "'all'"),
        (dict(sources=[0, 1, 2]), '0..11'),
        (dict(sources=[0, 2, 1, 4]), 'leaves out [3]'),
        (dict(sources=[]), 'is empty'),
        (dict(times=1, layers=(0, 1)), 'layers=[0, 1] names what is reused, and times=1 reuses nothing'),
    ],
)
def test_bad_maps_are_refused_with_rule_value_and_way_out(kwargs, says):
    with pytest.raises(ValueError, match='.') as error:
        LayerMap.build(12, **kwargs)
    assert says in str(error.value)


def test_a_map_without_the_pretrained_order_has_no_function_preserving_start():
    with pytest.raises(ValueError, match="start='function'"):
        LayerMap((1, 0, 1)).live(period=2)
    with pytest.raises(ValueError, match='one factor for each of the 4 stages'):
        stage_maps((2, 2, 6, 2), times=(1, 2))


def test_the_forms_that_command_lines_and_configs_give_are_understood():
    import numpy as np

    assert stage_maps((2, 2, 6, 2), sources={'3': [0, 0, 0, 1]})[3].sources == (0, 0, 0, 1)
    assert [len(m) for m in stage_maps((2, 2, 6, 2), stages=2)] == [2, 2, 12, 2]
    assert LayerMap.build(4, np.int64(2), layers=np.arange(2)) == LayerMap.build(4, 2, layers=(0, 1))
    for bad in (dict(layers=[0.5, 1]), dict(times=1.3333), dict(times=float('nan')), dict(times=float('inf'))):
        with pytest.raises(ValueError, match='must be'):
            LayerMap.build(12, **bad)
