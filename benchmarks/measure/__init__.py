"""What is measured and how: workloads, those that compute them, clocks, and the runs themselves."""
