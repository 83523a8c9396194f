"""Objectives that read the trunk's hidden states, one a file; `joint` puts them beside the trunk."""
