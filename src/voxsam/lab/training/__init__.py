"""Training: recipes, the Lightning task, and runs that go on where they stopped."""
