"""Sums that nobody can take apart: lanes, Paillier, pairwise masks, signatures."""
