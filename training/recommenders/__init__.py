"""The recommenders of LARP's section 3.3: content vectors in, vectors for the same inner-product search out."""
