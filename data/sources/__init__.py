"""The kinds of source: where documents come from."""
