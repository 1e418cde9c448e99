"""``sdediff demo``: the whole way on real data."""


def command() -> None:
    """x"""
