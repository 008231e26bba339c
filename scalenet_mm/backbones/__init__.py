from .deit import ScaleNetDeiT
from .libraries import ScaleNetHF, ScaleNetTimm
from .live import LiveBackbone
from .simple_fpn import SimpleFeaturePyramid
from .swin import ScaleNetSwin

__all__ = ['LiveBackbone', 'ScaleNetDeiT', 'ScaleNetHF', 'ScaleNetSwin', 'ScaleNetTimm', 'SimpleFeaturePyramid']
