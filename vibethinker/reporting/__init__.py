"""What a run achieved, for people: report.json (step), report.html (html, charts, svg) and the terminal (text)."""
