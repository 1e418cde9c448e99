"""What sdediff's claims about error, overhead, cost and order look like on this machine, beside its peers.

``make bench`` runs everything, writes JSON and plots and renders docs/benchmarks.md from them. Times are compared as ratios
within one run, since machines are shared and noisy; evaluations are counted.
"""
