"""PTX text to programs for the machine: source, statements, instructions, control flow, registers, records."""
