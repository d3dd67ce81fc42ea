from eval.metrics.cost import measure
from pipeline import networks
from tests.support.problems import tiny_config


def test_parameters_and_operations_are_those_counted_by_hand() -> None:
    """One level of 8 channels at 4x4, one block a level, no attention but the one in the middle."""
    network = networks.build(tiny_config(channel_mult=(1,), attention_resolutions=()))
    cost = measure(network, batch_size=4)

    pixels, c, e = 16, 8, 32
    time = c * e + e * e
    block = 2 * 9 * c * c * pixels + e * c  # two 3x3 convolutions, one projection of the embedding
    skip = 2 * 9 * c * c * pixels - 9 * c * c * pixels + 2 * c * c * pixels  # twice the input channels, 1x1 beside it
    attention = 4 * c * c * pixels + 2 * pixels * pixels * c
    ends = 2 * 9 * c * pixels
    by_hand = time + ends + 5 * block + 2 * skip + attention
    assert cost.macs == by_hand
    assert cost.flops == 2 * by_hand
    assert cost.parameters == sum(p.numel() for p in network.parameters())


def test_an_evaluation_takes_time_and_a_cpu_counts_no_memory() -> None:
    cost = measure(networks.build(tiny_config()), batch_size=4)
    assert cost.latency_ms > 0
    assert cost.peak_memory_bytes is None
