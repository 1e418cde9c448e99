"""Gauss-Legendre tables against integrals by hand; panels that are halved as often as needed, and no more often."""

from __future__ import annotations

import math

import pytest
import torch

from sdediff.collocation import Legendre, panel_of, refined, relative

F64 = torch.float64


@pytest.mark.parametrize("count", [3, 10, 16])
def test_integrals_of_polynomials(count):
    """∫₀¹ xᵏ up to degree 2Q - 1, ∫_{x_i}¹ xᵏ up to degree Q - 1."""
    rule = Legendre(count)
    for degree in range(2 * count):
        assert float(rule.weights @ rule.nodes**degree) == pytest.approx(1 / (degree + 1), rel=1e-13)
    for degree in range(count):
        exact = (1 - rule.nodes ** (degree + 1)) / (degree + 1)
        torch.testing.assert_close(rule.after @ rule.nodes**degree, exact, rtol=0, atol=1e-14)


def test_moments_of_polynomials():
    """∫_{x_i}¹ ((x - m_i)/(1 - x_i))ᵏ xʲ dx, row 0 from 0, by the antiderivative of the expanded integrand."""
    rule = Legendre(6)
    starts = torch.cat([torch.zeros(1, dtype=F64), rule.nodes])
    length, middle = 1 - starts, 0.5 * (1 + starts)

    def power(p):
        return (1 - starts ** (p + 1)) / (p + 1)  # the integral of x^p

    for j in range(6):
        by_hand = (
            power(j),
            (power(j + 1) - middle * power(j)) / length,
            (power(j + 2) - 2 * middle * power(j + 1) + middle**2 * power(j)) / length**2,
        )
        for row, exact in zip(rule.moments(3) @ rule.nodes**j, by_hand, strict=True):
            torch.testing.assert_close(row, exact, rtol=0, atol=1e-13)


def test_panels_are_halved_until_nothing_changes():
    asked = []

    def table(panels):
        asked.append(panels)
        return torch.tensor(1 + panels**-8.0, dtype=F64)

    def change(fine, coarse):
        return relative(fine, coarse, coarse)

    assert float(refined(table, change, 1.0, "")) == 1 + 64**-8.0  # 16**-8 is 2e-10, 32**-8 is 9e-13
    assert asked == [16, 32, 64]
    with pytest.raises(
        ValueError, match=r"with 1,024 panels the relative error is 5.0e-01.*in \[0, 3\] does this, so mind\."
    ):
        refined(lambda panels: torch.tensor(1.0 / panels), change, 3.0, ", so mind")
    with pytest.raises(ValueError, match="the relative error is inf"):
        refined(lambda panels: torch.tensor(math.nan), change, 1.0, "")


def test_panels_are_halved_further_where_that_gains_much():
    """An error of e^(-panels/100), as of large rates: squared each time."""
    asked = []

    def table(panels):
        asked.append(panels)
        return torch.tensor(1 + math.exp(-panels / 100), dtype=F64)

    def change(fine, coarse):
        return relative(fine, coarse, coarse)

    assert float(refined(table, change, 1.0, "")) == pytest.approx(1, abs=1e-15)
    assert asked[-3:] == [2048, 4096, 8192]
    with pytest.raises(ValueError, match=r"with 4,096 panels the relative error is 1.3e-09"):
        refined(table, change, 1.0, "", furthest=4096)
    with pytest.raises(ValueError, match="with 1,024 panels the relative error is"):  # a kink gains a factor of 4
        refined(lambda panels: torch.tensor(1 + panels**-2.0, dtype=F64), change, 1.0, "")


def test_a_time_lies_in_one_panel():
    t = torch.tensor([0.0, 0.24, 0.26, 1.99, 2.0], dtype=F64)
    assert panel_of(t, 2.0, 8).tolist() == [0, 0, 1, 7, 7]
