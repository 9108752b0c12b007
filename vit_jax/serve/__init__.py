"""Serve a model as a web page and a JSON API."""
