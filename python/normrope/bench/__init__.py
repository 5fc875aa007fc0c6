"""python -m normrope.bench: the step beside PyTorch eager, torch.compile and oneDNN, in time and memory."""
