import json
import threading

import pytest

from chat.fake_server import KEY, FakeServer
from vidlab.chat.client import ChatClient, Refused
from vidlab.chat.endpoint import Endpoint
from vidlab.chat.journal import Answer, Journal, Usage
from vidlab.chat.messages import ChatRequest
from vidlab.errors import UserError

PRICES = {"prompt_price": 2.0, "answer_price": 8.0}


def endpoint(server: FakeServer, **settings) -> Endpoint:
    return Endpoint(server.url, "fake-model", backoff=0.001, **settings)


def ask(server: FakeServer, path, requests, **settings) -> tuple[list[Answer | Refused], Usage, int]:
    with Journal(path) as journal:
        client = ChatClient(endpoint(server, **settings), journal)
        return [answer for _, answer in client.answers(requests)], client.spent, client.kept


def texts(answers):
    return [answer.text for answer in answers]


def test_answers_come_in_order_and_are_counted(tmp_path):
    with FakeServer(lambda model, text, pictures: f"you said {text}") as server:
        found, spent, _ = ask(server, tmp_path / "j", [ChatRequest(f"word {n}") for n in range(20)], **PRICES)
    assert texts(found) == [f"you said word {n}" for n in range(20)]
    # 20 calls of 10 + 4 tokens at 2 and 8 per million
    assert (spent.calls, spent.prompt_tokens, spent.answer_tokens) == (20, 200, 80)
    assert spent.cost == pytest.approx((200 * 2 + 80 * 8) / 1e6)


def test_nothing_is_paid_for_twice(tmp_path):
    requests = [ChatRequest(f"word {n}", (b"png",)) for n in range(4)]
    with FakeServer(lambda model, text, pictures: text + str(len(pictures))) as server:
        first, _, _ = ask(server, tmp_path / "j", [*requests, *requests])
        assert len(server.asked) == 4  # equal questions once, also when they are in flight together
        again, spent, kept = ask(server, tmp_path / "j", requests)
        assert len(server.asked) == 4 and texts(again) == texts(first[:4]) and (spent.calls, kept) == (0, 4)
        ask(server, tmp_path / "j", [ChatRequest("word 0", (b"another",))])
        assert len(server.asked) == 5


def test_a_line_that_a_kill_cut_off_is_asked_again(tmp_path):
    file = tmp_path / "j"
    with FakeServer(lambda model, text, pictures: text) as server:
        ask(server, file, [ChatRequest("one"), ChatRequest("two")], at_once=1)
        whole = file.read_bytes()
        for cut in (1, 30, len(whole.splitlines()[1])):
            file.write_bytes(whole[:-cut])
            before = len(server.asked)
            found, _, kept = ask(server, file, [ChatRequest("one"), ChatRequest("two")], at_once=1)
            assert texts(found) == ["one", "two"] and (len(server.asked) - before, kept) == (1, 1)
            assert file.read_bytes() == whole


def test_an_answer_is_on_disk_before_the_next_question_is_asked(tmp_path):
    seen = []

    def answer(model, text, pictures):
        seen.append((tmp_path / "j").read_bytes().count(b"\n"))
        return text

    with FakeServer(answer) as server:
        ask(server, tmp_path / "j", [ChatRequest(str(n)) for n in range(4)], at_once=1)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("failure", [(429, {"headers": {"Retry-After": "0"}}), (500, "x"), (200, {"choices": []})])
def test_passing_failures_are_tried_again(tmp_path, failure):
    left = [failure] * 2
    with FakeServer(lambda model, text, pictures: left.pop() if left else "at last") as server:
        found, _, _ = ask(server, tmp_path / "j", [ChatRequest("x")])
        assert texts(found) == ["at last"] and len(server.asked) == 3


def test_a_server_that_keeps_failing_ends_the_run_and_answers_are_kept(tmp_path):
    message = r"failed 3 times, at last: HTTP 503.*run the command again"
    with (
        FakeServer(lambda model, text, pictures: (503, "busy") if text == "2" else text) as server,
        pytest.raises(UserError, match=message),
    ):
        ask(server, tmp_path / "j", [ChatRequest(str(n)) for n in range(6)], retries=2, at_once=1)
    with Journal(tmp_path / "j") as journal:
        assert {"0", "1"} <= {answer.text for answer in journal}


def test_a_question_that_is_refused_leaves_the_others(tmp_path):
    with FakeServer(lambda model, text, pictures: (400, "bad picture") if text == "1" else text) as server:
        found, _, _ = ask(server, tmp_path / "j", [ChatRequest(str(n)) for n in range(3)])
    assert isinstance(found[1], Refused) and "HTTP 400" in found[1].reason and texts(found[::2]) == ["0", "2"]


def test_an_answer_without_words_is_an_answer(tmp_path):
    """``content`` is null where a model refuses, or thinks until it is cut; asking again would cost as much again."""
    choice = {"message": {"content": None, "reasoning_content": "well"}, "finish_reason": "length"}
    usage = {"prompt_tokens": 10, "completion_tokens": 512}
    with FakeServer(lambda model, text, pictures: (200, {"choices": [choice], "usage": usage})) as server:
        (found,), spent, _ = ask(server, tmp_path / "j", [ChatRequest("x")])
    assert found == Answer("", "fake-model", Usage(1, 10, 512), finished=False)
    assert (spent.calls, len(server.asked)) == (1, 1)


def test_the_key_is_sent_and_is_nowhere_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FAKE_KEY", KEY)
    echo = {"headers": {}, "error": f"your key {KEY} is wrong"}
    with FakeServer(lambda model, text, pictures: (401, echo) if text == "no" else f"{text} {KEY}") as server:
        made = endpoint(server, key_variable="FAKE_KEY")
        with Journal(tmp_path / "j") as journal:
            client = ChatClient(made, journal)
            ((_, answer),) = client.answers([ChatRequest("yes")])
            with pytest.raises(UserError) as caught:
                list(client.answers([ChatRequest("no")]))
    assert server.keys == [f"Bearer {KEY}"] * 2
    assert isinstance(answer, Answer) and answer.text == "yes ***"
    assert "FAKE_KEY is set and was refused" in str(caught.value)
    everywhere = str(caught.value) + repr(made) + caplog.text + (tmp_path / "j").read_text()
    assert KEY not in everywhere


def test_a_redirect_takes_no_key_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(lambda *_: "stolen") as other:
        move = (302, {"headers": {"Location": other.url}})
        with FakeServer(lambda *_: move) as server, pytest.raises(UserError, match="HTTP 302"):
            ask(server, tmp_path / "j", [ChatRequest("x")])
        assert other.asked == []


def test_settings_that_cannot_work():
    for settings, message in (
        ({"url": None, "model": "m"}, "endpoint.url=None: give the address"),
        ({"url": "localhost:8000", "model": "m"}, "endpoint.url=localhost:8000"),
        ({"url": "http://h/v1", "model": None}, "endpoint.model is not set"),
        ({"url": "http://h/v1", "model": "m", "at_once": 0}, "endpoint.at_once=0: it must be 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            Endpoint(**settings)
    with pytest.raises(UserError, match="never the key itself") as caught:
        Endpoint("http://h/v1", "m", key_variable="sk-secret-thing")
    assert "sk-secret" not in str(caught.value)
    assert Endpoint("https://user:word@host.org:80/v1", "m").source == "m at host.org:80"


def test_nothing_listens(tmp_path):
    made = Endpoint("http://127.0.0.1:9/v1", "fake-model", backoff=60)
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(UserError, match=r"cannot be reached: .*refused\. Start"),
    ):
        list(ChatClient(made, journal).answers([ChatRequest("x")]))


def test_a_server_that_was_there_is_waited_for():
    made = Endpoint("http://127.0.0.1:9/v1", "fake-model", retries=1, backoff=0.001)
    with pytest.raises(UserError, match=r"failed 2 times, at last: .*refused"):
        made.ask(made.body(ChatRequest("x")), answered=True)


def test_an_answer_is_that_of_its_server(tmp_path):
    for name in ("first", "second"):
        with FakeServer(lambda model, text, pictures, name=name: name) as server:
            assert texts(ask(server, tmp_path / "j", [ChatRequest("x")])[0]) == [name]
    addresses = {Endpoint(f"https://{login}host.org/v1{end}", "m").address
                 for login in ("", "me:secret@", "token@") for end in ("", "/", "/chat/completions")}  # fmt: skip
    assert addresses == {"https://host.org/v1"}


def test_one_process_writes_a_journal(tmp_path):
    with Journal(tmp_path / "j"):
        caught = []

        def second():
            try:
                with Journal(tmp_path / "j"):
                    pass
            except UserError as error:
                caught.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "in use by another process" in caught[0]


def test_usage_adds_up():
    total = Usage(1, 10, 2, 0, 0.5) + Usage(1, 0, 0, 1, None)
    assert (
        total == Usage(2, 10, 2, 1, 0.5)
        and str(total) == "2 calls, 10 + 2 tokens (1 calls without a count), cost 0.5000"
    )
    assert json.dumps(total.cost)
