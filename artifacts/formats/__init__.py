"""What both sides of the wall between compiler and runtime tests must agree on, each thing defined once.

What lives here: the layout of files and of the manifest's sections, with their checks. What must not: computing what
goes into them, and running anything.
"""
