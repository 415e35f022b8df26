"""Requests, blocks, prefix cache, scheduler: the serving loop."""
