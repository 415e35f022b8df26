"""Perplexity, KL and other receipts of quality."""
