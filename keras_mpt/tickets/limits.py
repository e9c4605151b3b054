"""What a file may ask for. A file from a stranger can claim anything: see docs/ticket-format.md, section 12."""

LARGEST_HEADER = (
    1 << 23
)  # bytes of JSON; a thousand layers take an eighth of it, parsed JSON twenty times as much memory
LARGEST_INTEGER = (1 << 64) - 1  # a seed
DEEPEST = 200  # levels of JSON; a model inside a model takes four
MOST_AXES = 32

# So many weights may be in a file, and no more, that a short one cannot ask for much memory.
FREE_WEIGHTS = 1 << 22
WEIGHTS_PER_BYTE = 512

# A layer that is used twice is rebuilt twice: models inside models could double that at each level.
FREE_TENSORS = 1 << 14
TENSORS_PER_OBJECT = 16
LARGEST_TENSOR = 1 << 28  # entries of what one sample becomes anywhere in the model
VARIABLES_PER_KERNEL = 12  # scores, weights, and what rules count with

# Arguments that decide how long a call takes, or how much memory, where shapes do not tell.
MOST_OF_ARGUMENTS = {
    ("SpectralNormalization", "power_iterations"): 100,
    ("Diff", "n"): 100,
    ("GaussianBlur", "kernel_size"): 1000,
}
