"""What a run leaves: records, tables and pictures."""
