"""Everything that exists to check the paper; no other part imports it. `scalenet experiment --help`."""
