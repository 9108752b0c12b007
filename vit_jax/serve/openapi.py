"""Describe the API (OpenAPI 3.1)."""

from typing import Any

import vit_jax


def description(with_token: bool) -> dict[str, Any]:
    """Return the OpenAPI document."""
    number = {"type": "number"}
    image = {"schema": {"type": "string", "contentMediaType": "image/*"}}
    form = {"schema": {"type": "object", "properties": {"image": {"type": "string", "contentMediaType": "image/*"}}}}
    parameters = [
        {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 5}},
        {"name": "attention", "in": "query", "schema": {"type": "integer", "enum": [0, 1], "default": 0}},
        {"name": "neighbours", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 50, "default": 0}},
        {"name": "text", "in": "query", "schema": {"type": "array", "items": {"type": "string"}},
         "description": "labels to compare with, for a model of images and texts"},
    ]  # fmt: skip
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    reasons = {
        "400": "A parameter is wrong", "401": "The token is missing or wrong", "403": "Another site asks, or the Host is unknown",
        "408": "The photograph came too slowly", "413": "The photograph has too many bytes",
        "415": "The body is no photograph", "422": "The photograph cannot be read",
        "503": "The queue is full; ask again after Retry-After seconds",
    }  # fmt: skip
    answer = {
        "type": "object",
        "properties": {
            "image": {"type": "string", "description": "with attention=1: what the model saw, a data URL"},
            "classes": _list({"label": {"type": "string"}, "probability": number}),
            "values": _list({"name": {"type": "string"}, "value": number}),
            "texts": _list({"label": {"type": "string"}, "probability": number}),
            "segments": _list({"label": {"type": "string"}, "share": number, "colour": {"type": "string"}}),
            "numbers": {"type": "object", "properties": {"least": number, "most": number}},
            "boxes": _list({"label": {"type": "string"}, "score": number, "colour": {"type": "string"},
                            "box": {"type": "array", "items": number, "description": "left, top, right, bottom, as fractions"}}),
            "overlay": {"type": "string", "description": "segments, numbers or boxes as a picture, a data URL"},
            "attention": {
                "type": "object",
                "description": "of the last block, mean over heads; bytes in base64, each map scaled to 0 .. 255",
                "properties": {
                    "grid": {"type": "array", "items": {"type": "integer"}},
                    "head": {"type": "string"},
                    "patches": {"type": "string"},
                },
            },
            "neighbours": _list({"name": {"type": "string"}, "label": {"type": "string"}, "cosine": number,
                                 "thumbnail": {"type": ["string", "null"]}}),
        },
    }  # fmt: skip
    predict = {
        "summary": "Predict a photograph",
        "operationId": "predict",
        "parameters": parameters,
        "requestBody": {"required": True, "content": {"image/*": image, "multipart/form-data": form}},
        "responses": {
            "200": {"description": "The answer", "content": {"application/json": {"schema": answer}}},
            **{code: {"description": reason, "content": error} for code, reason in reasons.items()},
        },
    }
    schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if with_token else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "vit_jax", "version": vit_jax.__version__},
        "paths": {
            "/api/predict": {"post": predict},
            "/api/info": {"get": _plain("The model, its image shape and its classes")},
            "/healthz": {"get": _plain("Whether the server is up")},
        },
        "components": {
            "schemas": {"Error": {"type": "object", "properties": {"error": {"type": "string"}}}},
            **schemes,
        },
        **({"security": [{"token": []}]} if with_token else {}),
    }


def _list(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "properties": properties}}


def _plain(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "OK"}}}
