"""Runs other engines beside this one, on the same weights, machine and minutes."""
