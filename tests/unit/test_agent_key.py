"""The agent's key goes with every request, and stands in no message."""

import click
import pytest
import requests
from click.testing import CliRunner

from agent import client
from agent.options import server_option


@click.command()
@server_option
def command(server):
    session = requests.Session()
    sent = []

    class Adapter(requests.adapters.BaseAdapter):
        def send(self, request, **_):
            sent.append(request.headers.get("Authorization"))
            raise requests.ConnectionError

        def close(self):
            pass

    session.mount("http://", Adapter())
    answer = client.exchange(session, "GET", f"{server}/api/v1/ecm-work")
    click.echo(f"{sent} {answer}")


@pytest.fixture(autouse=True)
def _no_key_afterwards():
    yield
    client.use_key(None)


@pytest.mark.parametrize(("arguments", "environment"), [(["--key", "secret"], {}), ([], {"ECM_KEY": "secret"})])
def test_the_key_of_the_option_or_the_environment_is_sent(arguments, environment):
    said = CliRunner().invoke(command, ["--server", "http://127.0.0.1:1", *arguments], env=environment)
    assert "['Bearer secret']" in said.output
    assert "secret" not in said.output.replace("Bearer secret", "")


def test_without_a_key_none_is_sent():
    said = CliRunner().invoke(command, ["--server", "http://127.0.0.1:1"], env={"ECM_KEY": ""})
    assert "[None]" in said.output


def test_a_key_that_is_no_word_is_refused():
    said = CliRunner().invoke(command, ["--server", "http://127.0.0.1:1", "--key", "two words"])
    assert said.exit_code == 2
    assert "one word" in said.output
