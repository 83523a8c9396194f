"""Objectives that read the trunk's hidden states: dynamics, policy, value, span contrastive; `joint` puts them beside the trunk."""
