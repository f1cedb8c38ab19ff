"""The HTTP server behind `edge-distill serve`: OpenAI's chat completions over one loaded model."""
