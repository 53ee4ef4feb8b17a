"""Results for people: tables, figures, findings, the HTML report."""
