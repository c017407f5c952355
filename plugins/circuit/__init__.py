"""Circuits: which heads, MLPs and connections of a subject model carry out a task."""
