"""Pictures for lessons: cards of pairs and answers, curves."""
