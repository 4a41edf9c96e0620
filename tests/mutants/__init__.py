"""Answers to the exercises, a module for each chapter: WRONG ones of learners, RIGHT ones written otherwise.

Both are dictionaries: exercise -> what is wrong, or how it is written -> function.
"""
