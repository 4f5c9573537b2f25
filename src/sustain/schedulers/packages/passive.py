"""Which idle states of a package are independent of the other packages, by watching alone. Pure.

Used by `decide`, at each look. A state that is coordinated is entered only while all packages are idle, so its share of
time obeys r_i ≤ 1 − max b_j, b_j being the share of time in which any processor of package j was awake. An interval
that breaks this by more than 2 points proves the state independent. b_j is known from below only, by its busiest
processor, which makes the proof no weaker: it is never given too early. That a state is coordinated cannot be seen so;
`sustain packages test` finds it out.
"""

from sustain.schedulers.packages.independence import of_package
from sustain.schedulers.packages.model import Finding, Observation
from sustain.schedulers.packages.rates import Rates

_MARGIN = 0.02  # of time
_LEAST_S = 4.0  # of an interval
_APART_S = 0.1  # that a package's counters may be read before the look: more makes the margin wider
_SHALLOW = ("pc0", "pc1", "pc2")  # pc2 is also where a package waits for the others


def passive(between: Rates, seen: Observation) -> tuple[Finding, ...]:
    """What this interval proves, and was not known. A package whose counters were read at other times than processors'
    must break the bound by more."""
    if between.passed_s < _LEAST_S:
        return ()
    known = {(each.package, each.state) for each in seen.findings if each.independence == "independent"}
    found = []
    for number, shares in between.residency.items():
        others = [awake for other, awake in between.awake.items() if other != number]
        length_s, ago_s = between.read_for_s[number]
        if not others or length_s <= 0:
            continue
        skew = (abs(length_s - between.passed_s) + max(0.0, ago_s - _APART_S)) / between.passed_s
        bound = 1 - max(others)
        for state, share in shares.items():
            if not of_package(state) or state in _SHALLOW or (number, state) in known:
                continue
            if share <= bound + _MARGIN + skew:
                continue
            found.append(
                Finding(
                    package=number,
                    state=state,
                    independence="independent",
                    how="passive",
                    detail=(
                        f"in it for {share:.0%} of {between.passed_s:.0f} s, while another package was awake "
                        f"for at least {max(others):.0%}"
                    ),
                )
            )
    return tuple(found)
