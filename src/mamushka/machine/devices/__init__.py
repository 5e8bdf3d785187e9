"""What stands on a machine's buses. One folder each, all alike; none knows an architecture."""
