"""Where preferences come from: models, judges, people."""
