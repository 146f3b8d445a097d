"""Is tonight like the nights before it? Judged from predictions alone, without truth."""
