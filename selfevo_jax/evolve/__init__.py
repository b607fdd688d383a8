"""The run engine: stages over records, the run that a method sees, and one file per method."""
