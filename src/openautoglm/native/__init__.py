"""The native core and its thin binding."""
