"""The JSON that crosses the HTTP interface: request bodies, query parameters and answers, as pydantic models.

The web process validates with these models, and /openapi.json is generated from them. There is one module per subject;
`common` has the scalar types that several subjects use. The specification is keyed by model name, so no two models have
the same name. The package imports only `models.limits`, because clients import it, too.
"""
