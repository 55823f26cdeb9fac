"""What remains to be run, where, in how much memory and time, and what cannot work. Loads no torch."""
