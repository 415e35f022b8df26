"""Bytes on disk as named tensors; every header is hostile."""
