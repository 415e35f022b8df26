"""Byte formulas, the ledger of reservations, and memory pressure."""
