"""Measures speed and memory beside the machine's roofline."""
