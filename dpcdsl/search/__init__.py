"""The search for cells: who proposes them, and the study that keeps what was found. Free of torch.

An objective is a callable; the proxy task of :mod:`dpcdsl.segmentation` is one.
"""
