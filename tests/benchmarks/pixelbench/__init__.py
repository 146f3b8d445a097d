"""Pixelmill beside the limits of the machine and beside what a user would run instead.

`python -m pixelbench --help`, with this folder's parent on the path; `make bench` runs it all.
"""
