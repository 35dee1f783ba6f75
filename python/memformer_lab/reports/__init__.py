"""What was found, and how it is shown: results, verdicts, pictures, tables, pages, and what commands print."""
