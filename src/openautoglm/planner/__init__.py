"""From (ArchSpec, MachineSpec, Goal) to a Plan, or why it does not fit."""
