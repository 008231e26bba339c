from .deit import ScaleNetDeiT
from .swin import ScaleNetSwin

__all__ = ['ScaleNetDeiT', 'ScaleNetSwin']
