"""Labelled images: where data sets lie, what identifies them, and how batches are drawn."""
