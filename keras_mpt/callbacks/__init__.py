"""Callbacks: recycling, schedules, statistics and checks."""

from keras_mpt.callbacks.check_scores import CheckScores
from keras_mpt.callbacks.recycling import IteRand, IterativeWeightRecycling
from keras_mpt.callbacks.restriction import ShortRestriction
from keras_mpt.callbacks.schedules import SparsitySchedule
from keras_mpt.callbacks.statistics import MaskStatistics

__all__ = [
    "CheckScores",
    "IteRand",
    "IterativeWeightRecycling",
    "MaskStatistics",
    "ShortRestriction",
    "SparsitySchedule",
]
