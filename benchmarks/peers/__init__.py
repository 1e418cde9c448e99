"""The libraries compared with, each driven as its documentation says."""
