"""From a prompt to its answer: batches, decoding, budgets, forms, remembered prompts."""
