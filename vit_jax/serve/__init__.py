"""A model behind a page and a JSON API."""
