"""What the operator asked for: models, reading, loading, dumping, plan."""
