"""The report: one page that says what was run, what it shows, and what it does not."""
