"""MBS-Net in plain C: the sources, the weights file that they read, and the building of both into a runtime.

edgese.h says how a C program uses it. runtimes/native.py opens what is built here, as any runtime opens its artefact.
"""
