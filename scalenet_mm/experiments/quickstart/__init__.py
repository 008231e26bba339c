"""What scalenet experiment quickstart runs: ``quickstart_tasks`` (what differs between
them), ``quickstart_runs``, ``quickstart_page``."""
