"""The libraries' own demands on their backbones hold for ours."""

import neighbours
import pytest


@pytest.mark.slow
def test_what_a_library_demands_of_its_class_holds_at_times_1_and_2():
    found = neighbours.run()
    counted = {where: errors[1:] for where, errors in found.items() if not errors[0]}
    assert len(counted) > 0.8 * len(found), 'the restated demands are those of the installed libraries'
    assert {name for name, _ in counted} == set(neighbours.CLASSES)
    assert not {where: errors for where, errors in counted.items() if any(errors)}
