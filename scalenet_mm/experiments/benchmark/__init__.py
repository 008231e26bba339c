"""Speed and memory beside stock networks of the same depth: goals, pairs, one way to measure (docs/performance.md)."""
