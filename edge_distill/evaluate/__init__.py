"""Was reasoning transferred? Measures on a student, in the text that it writes itself."""
