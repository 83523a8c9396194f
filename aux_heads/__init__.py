"""Objectives that read the trunk's hidden states, one per file; `joint` adds them to the trunk."""
