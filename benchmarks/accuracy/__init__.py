"""How close plans come: shapes, cells, one measured load, and the report of many."""
