"""One row of the paper from data to result: what it needs, the run, and the bundle that is left of it."""

from .plan import Plan, make_plan
from .reproduction import check, run

__all__ = ['Plan', 'check', 'make_plan', 'run']
