"""What models are trained and judged on: random regression tasks, measured data, tables, and their seeds."""
