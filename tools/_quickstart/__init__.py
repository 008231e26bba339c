"""What tools/quickstart.py runs: ``tasks`` (what differs between them), ``runs``, ``report``."""
