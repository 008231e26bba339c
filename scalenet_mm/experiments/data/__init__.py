"""The demo data set: scenes of scikit-learn's handwritten digits in three layouts; torch is not imported here."""

from .dataset_layouts import ADE_CLASSES, LAYOUTS, PALETTE, SUM_CLASSES
from .demo import make_demo_data
from .digits import CLASSES
from .scenes import SceneStyle, render_scene

__all__ = [
    'ADE_CLASSES',
    'CLASSES',
    'LAYOUTS',
    'PALETTE',
    'SUM_CLASSES',
    'SceneStyle',
    'make_demo_data',
    'render_scene',
]
