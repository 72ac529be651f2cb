"""What is asked for about work, as it is understood."""

import pytest
from pydantic import BaseModel

from models.wire.work import AbandonQuery, AnyWorkQuery, EcmWorkQuery, P1WorkQuery


@pytest.mark.parametrize(
    ("methods", "understood"),
    [("", "ecm"), (" , ", "ecm"), ("pm1, ecm", "pm1,ecm"), (",".join(["ecm", "pm1"] * 1000), "ecm,pm1")],
)
def test_each_method_is_looked_for_once_and_in_order(methods, understood):
    assert AnyWorkQuery(client_id="one", methods=methods).methods == understood


@pytest.mark.parametrize("model", [EcmWorkQuery, P1WorkQuery, AnyWorkQuery, AbandonQuery])
def test_what_is_empty_was_not_given(model: type[BaseModel]):
    needed = {"client_id": "one"}
    optional = {name for name, field in model.model_fields.items() if field.default is None}
    assert model(**needed | dict.fromkeys(optional - {"client_id"}, "")) == model(**needed)
