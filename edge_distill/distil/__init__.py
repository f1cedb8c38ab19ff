"""From traces to a trained student: spans, losses, cached teachers, initial students, quantization-aware training."""
