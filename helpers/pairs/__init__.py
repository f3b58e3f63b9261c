"""Preference pairs: load, format, check; image bytes stay as they are."""
