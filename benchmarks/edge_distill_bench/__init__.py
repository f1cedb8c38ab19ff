"""Latency, memory and retention of the artifacts that edge-distill exports."""
