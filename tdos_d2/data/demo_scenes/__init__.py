"""The demo's datasets: street scenes that are drawn, not photographed."""
