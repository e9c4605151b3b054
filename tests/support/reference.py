"""The papers' formulas in plain numpy, and the random generator from its publication."""

import math

import numpy as np


def mask(scores, kept):
    """The `kept` largest magnitudes are 1, of equal ones those with the lower flat index (Edge-Popup, section 3.2)."""
    magnitudes = np.abs(scores.astype(np.float64)).reshape(-1)
    order = np.lexsort((np.arange(magnitudes.size), -magnitudes))
    result = np.zeros(magnitudes.size, np.float32)
    result[order[:kept]] = 1
    return result.reshape(scores.shape)


def edge_popup_kernel(frozen, mask):
    """`W * M` (Ramanujan et al. 2020)."""
    return frozen * mask


def biprop_kernel(frozen, mask):
    """`alpha * sign(W) * M`, `alpha = sum(|W| * M) / sum(M)` (Diffenderfer & Kailkhura 2021, algorithm 1)."""
    frozen = frozen.astype(np.float64)
    alpha = (np.abs(frozen) * mask).sum() / mask.sum()
    return (alpha * np.sign(frozen) * mask).astype(np.float32)


KERNELS = {"identity": edge_popup_kernel, "scaled_sign": biprop_kernel}


def score_gradient(kernel_gradient, frozen, scores):
    """`g * W * sign(S)` for every entry, kept or not."""
    return kernel_gradient * frozen * np.sign(scores)


def recycled(frozen, scores, rate, ablation=False):
    """Iterative weight recycling once: `W[o[i]] := W[o[n - k + i]]`, in the ablation `W[o[k + i]]`, for i < k."""
    old, size = frozen.reshape(-1), frozen.size
    order = np.argsort(np.abs(scores).reshape(-1), kind="stable")
    k = int(rate * size)
    new = old.copy()
    for i in range(k):
        new[order[i]] = old[order[k + i if ablation else size - k + i]]
    return new.reshape(frozen.shape)


def redrawn(frozen, mask, fresh, uniform, rate):
    """IteRand once: each pruned entry is replaced with probability `rate`."""
    new = frozen.copy()
    for index in np.ndindex(frozen.shape):
        if mask[index] == 0 and uniform[index] < rate:
            new[index] = fresh[index]
    return new


def same_padding(size, kernel, stride, dilation):
    """(before, after) of TensorFlow's "SAME": `ceil(size / stride)` outputs, the odd element of padding at the end."""
    reach = (kernel - 1) * dilation + 1
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def philox(seed, stream, count):
    """`count` words of Philox4x64-10 (Salmon et al. 2011) with key (seed, stream), counters 1, 2, ..."""
    low = 2**64 - 1
    words = []
    for counter in range(1, -(-count // 4) + 1):
        a, b, c, d = counter, 0, 0, 0
        keys = seed, stream
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = (second >> 64) ^ b ^ keys[0], second & low, (first >> 64) ^ d ^ keys[1], first & low
            keys = (keys[0] + 0x9E3779B97F4A7C15) & low, (keys[1] + 0xBB67AE8584CAA73B) & low
        words += [a, b, c, d]
    return words[:count]
