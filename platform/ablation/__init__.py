"""Studies, cells, the ledger of evidence and the tables drawn from it.

Importing the package loads nothing heavy; import the module you need (`ablation.study`, ...).
"""
