"""What the lessons import: one concept a module, ground floor first (see the README's map)."""
