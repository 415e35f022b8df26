"""Looks at this machine and describes it."""
