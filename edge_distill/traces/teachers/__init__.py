"""Teachers: who writes the traces. Each kind has a module; `teacher.py` says what all of them do."""
