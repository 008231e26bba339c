"""The paper's experiments at a size anyone can rerun: task, rows, runs, statistics. See scalenet experiment study."""
