"""The executor boundary and the native executor behind it."""
