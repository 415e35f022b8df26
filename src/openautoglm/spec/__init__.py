"""Frozen descriptions: architectures, formats, machines, goals, plans, sampling."""
