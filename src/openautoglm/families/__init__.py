"""config.json to ArchSpec, tensor names to roles: one module per family."""
