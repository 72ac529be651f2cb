"""The agent's key goes with every request, and stands in no message."""

import click
import pytest
import requests
from click.testing import CliRunner

from agent import http_client
from agent.command_options import server_option


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
    answer = http_client.send_request(session, "GET", f"{server}/api/v1/ecm-work")
    click.echo(f"{sent} {answer}")


@pytest.fixture(autouse=True)
def _no_key_afterwards():
    yield
    http_client.use_key(None)


@pytest.mark.parametrize(("arguments", "environment"), [(["--key", "secret"], {}), ([], {"ECM_KEY": "secret"})])
def test_the_key_of_the_option_or_the_environment_is_sent(arguments, environment):
    result = CliRunner().invoke(command, ["--server", "http://127.0.0.1:1", *arguments], env=environment)
    assert "['Bearer secret']" in result.output
    assert "secret" not in result.output.replace("Bearer secret", "")


def test_without_a_key_none_is_sent():
    result = CliRunner().invoke(command, ["--server", "http://127.0.0.1:1"], env={"ECM_KEY": ""})
    assert "[None]" in result.output


def test_a_key_that_is_no_word_is_refused():
    result = CliRunner().invoke(command, ["--server", "http://127.0.0.1:1", "--key", "two words"])
    assert result.exit_code == 2
    assert "one word" in result.output
