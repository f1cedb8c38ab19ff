"""What `make demo` shows: a tiny teacher and its student from traces to int4, and a real model's export."""
