from .deit import ScaleNetDeiT
from .simple_fpn import SimpleFeaturePyramid
from .swin import ScaleNetSwin

__all__ = ['ScaleNetDeiT', 'ScaleNetSwin', 'SimpleFeaturePyramid']
