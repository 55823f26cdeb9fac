"""Texts as pure functions of what is stored: how good they are, how unsure, and what the latter is worth."""
