"""Datasets: documents (source files, prompts, images) and the labels that come with them."""
