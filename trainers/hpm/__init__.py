"""Hard Patches Mining for masked image modelling: the method, its data and its evaluations.

Importing the package loads nothing heavy; import the module you need (`hpm.pretrain`, ...).
"""
