"""One program per engine, each run in that engine's own environment."""
