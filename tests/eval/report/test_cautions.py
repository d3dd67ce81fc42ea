"""What a reader must know stands before the figures, and nothing else does."""

from eval.report.cautions import cautions
from eval.results import Figure, Metric
from tests.support.reports import bare_report, digits_report, inception_report, row


def test_points_are_cautioned_of_their_number_and_not_of_being_no_fid() -> None:
    reference = bare_report().reference.model_copy(update={"shape": (2,), "source": "points.npy"})
    (caution,) = cautions(bare_report(shape=(2,), reference=reference, num_samples=1000, not_computed=()))
    assert caution == "Over 1,000 samples. Distances fall with their number: compare only figures over as many."


def test_a_wasserstein_distance_says_over_how_many_pairs_it_is() -> None:
    w2 = Metric(key="w2-values", heading="Wasserstein distance", space="values", lower_is_better=True)
    texts = cautions(digits_report(metrics=(w2,), num_samples=8000, not_computed=()))
    assert "Over 1,000 pairs. Distances fall with their number: compare only figures over as many." in texts


def test_a_teacher_that_is_far_from_the_reference_is_called_so_first() -> None:
    rows = (row("solver", "dopri5", 100, [3.1]), row("student", "1 step", 1, [3.0]))
    far, *_ = cautions(digits_report(rows=rows, reference_scores={"fd-digits": Figure(values=(1.0, 1.2))}))
    assert far == (
        "The teacher itself has Fréchet distance 3.10, where the reference itself has 1.10. "
        "A student learns to draw as its teacher does."
    )
    own = {"fd-digits": Figure(values=(0.4,)), "precision-digits": Figure(values=(0.98,))}
    short, *_ = cautions(digits_report(reference_scores=own))
    assert short.startswith("The teacher itself falls short of the reference in precision, 0.87 for 0.98.")
    near, *_ = cautions(digits_report(rows=rows, reference_scores={"fd-digits": Figure(values=(2.0, 2.6))}))
    assert near.startswith("Compared by")


def test_a_bias_is_named_only_where_there_is_a_frechet_distance() -> None:
    assert any("biased upwards" in text for text in cautions(digits_report()))
    assert not any("biased upwards" in text for text in cautions(bare_report(metrics=(), num_samples=1000)))
    assert not any("samples" in text for text in cautions(inception_report(num_samples=50_000)))
