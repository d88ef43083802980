"""What the operator asked for: models, loading, dumping, plan."""
