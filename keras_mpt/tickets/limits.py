"""Limits for files, which may come from strangers: see docs/ticket-format.md, section 12."""

LARGEST_HEADER = 1 << 23  # bytes of JSON; a thousand layers take an eighth, parsed JSON twenty times the memory
LARGEST_INTEGER = (1 << 64) - 1  # a seed
DEEPEST = 200  # levels of JSON; a model inside a model takes four
MOST_AXES = 32

# Bounds on the number of weights: a short file cannot ask for much memory.
FREE_WEIGHTS = 1 << 22
WEIGHTS_PER_BYTE = 512

# A layer that is used twice is rebuilt twice: models inside models could double that at each level.
FREE_TENSORS = 1 << 14
TENSORS_PER_OBJECT = 16
LARGEST_TENSOR = 1 << 28  # entries per sample of any tensor in the model
VARIABLES_PER_KERNEL = 24  # scores, weights, the state of mask rules, and see below
VARIABLES_PER_VARIABLE = 4  # `Bidirectional` makes copies of its layer, each with random generators of its own

# Bounds on arguments that affect the time or memory of a call but no shape.
MOST_OF_ARGUMENTS = {
    ("SpectralNormalization", "power_iterations"): 100,
    ("Diff", "n"): 100,
    ("GaussianBlur", "kernel_size"): 1000,
}
