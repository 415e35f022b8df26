"""Overload with deadlines: traces, a simulator around the real engine, and clients of a real server."""
