"""What requests are expected to cost."""

from xi_server.expected import Expected

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


def test_before_anything_is_known_the_request_is_believed() -> None:
    expected = Expected()
    assert expected.tokens(CHAT, 0, 100) == 100
    assert expected.tokens(CHAT, 0, None) == 256
    assert expected.tokens(CHAT, 3200, 100) == 200, "32 bytes of prompt are a token"
    assert expected.tokens(CHAT, 0, 0) >= 1


def test_how_much_of_the_limit_is_used_is_learned() -> None:
    expected = Expected()
    for _ in range(300):
        expected.learn(CHAT, 4096, 41)
    assert 35 <= expected.tokens(CHAT, 0, 4096) <= 50
    assert expected.tokens(CHAT, 0, None) == 256, "requests without a limit are apart"
    for _ in range(300):
        expected.learn(CHAT, 4096, 4096)
    assert expected.tokens(CHAT, 0, 4096) > 4000, "and learned anew"


def test_requests_without_a_limit_and_routes_are_apart() -> None:
    expected = Expected()
    for _ in range(300):
        expected.learn(CHAT, None, 1000)
        expected.learn(EMBEDDINGS, None, 0)
    assert 900 <= expected.tokens(CHAT, 0, None) <= 1000
    assert expected.tokens(EMBEDDINGS, 640, None) <= 25
