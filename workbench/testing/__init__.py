"""Checks that authors of plugins and of subject sources can run on their own: see the modules."""
