"""How many samples figures take. Nothing here needs torch, so that a configuration is checked at once."""

FULL_NUM_SAMPLES = 50_000  # as in published figures; with fewer samples, FID is biased upwards
NEIGHBOURHOOD = 3  # k of precision and recall, as Kynkaanniemi et al. 2019 and ADM's evaluator use
MIN_SAMPLES = NEIGHBOURHOOD + 1  # a sample, and the neighbours that set the radius of its ball
MAX_PAIRS = 1000  # of an exact Wasserstein distance, whose time grows with their cube
OTHERS = 4  # a reference that is compared with itself has as many times the samples of a row
MAX_MANIFOLD_SIZE = 10_000  # samples or images that make a manifold, as many as Naeem et al. 2020 take
