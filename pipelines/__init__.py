"""What we run: one declarative file per table or figure, each with a `SWEEP`."""
