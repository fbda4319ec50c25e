"""Products of a stored matrix with single tokens of several texts: each code is read and looked up once for all."""
