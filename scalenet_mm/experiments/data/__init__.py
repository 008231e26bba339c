"""The embedded demo data set: cluttered scenes made from scikit-learn's handwritten digits.

Real data without a download: ``make_demo_data('data/demo')`` writes them in ImageNet-folder, COCO
and ADE20K layout. Needs numpy, OpenCV and scikit-learn; torch is not imported here.
"""

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
