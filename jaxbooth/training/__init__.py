"""The train step: the layout of a batch, the batch, its loss and gradients, the optimizer and the train state.

All of it is pure: functions of arrays and of the configuration's sections. Imports `data`, `base` and what lies below
them; knows of no whole configuration, run folder or file.
"""
