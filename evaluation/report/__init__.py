"""What leaves the app: tables, charts, contact sheets and reports."""
