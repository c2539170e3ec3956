"""Evaluations of an exported encoder, and the references that stand in for one."""
