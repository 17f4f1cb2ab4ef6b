"""The demo's data sets: street scenes that are drawn, not photographed."""
