"""What scalenet experiment quickstart runs: ``tasks`` (what differs between them), ``runs``, ``report``."""
