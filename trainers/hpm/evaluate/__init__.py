"""Evaluations of a frozen encoder, and the references that stand in for one."""
