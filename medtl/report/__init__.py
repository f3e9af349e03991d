"""FINDINGS AND NUMBERS -> PAGES: self-contained HTML that loads nothing and names no patient."""
