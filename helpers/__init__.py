"""What the lessons import: one concept a module, ground floor first (see docs/modules.md)."""
