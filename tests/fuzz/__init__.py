"""Feeds every reader of the labeling tools with damaged, absurd and hostile variants of valid sources.

`python -m tests.fuzz --cases 100000 --seed 0 --keep findings` says how many cases each reader has stood, and
keeps the sources that it did not. The test suite runs a few of them; what is found becomes a test of its own.
"""
