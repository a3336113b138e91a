"""Servers of the same contract on the stock diffusers pipeline, each as short as one would write it."""
