import pytest

from vidlab.redaction import redact, redact_tree


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:secret@host:5000", "http://me:***@host:5000"),
        ("logger.uri=postgresql://me:se'c/r@t@host/db?a=1", "logger.uri=postgresql://me:***@host/db?a=1"),
        ("mysql+pymysql://me:@host/db", "mysql+pymysql://me:***@host/db"),
        ("http://a:secret@b,http://c:secret@d", "http://a:***@b,http://c:***@d"),
        ("https://secret@host/x", "https://***@host/x"),
        ("http://host/?token=secret&page=1", "http://host/?token=***&page=1"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),
        ("s3://b/k?X-Amz-Signature=secret", "s3://b/k?X-Amz-Signature=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret%3BX%3D1",
         "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D***%3BX%3D1"),
        ("cannot reach 'http://me:secret@host' now", "cannot reach 'http://me:***@host' now"),
    ],
)  # fmt: skip
def test_passwords_and_tokens_go(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("sqlite:////home/a:b/c@d.db", "http://localhost:5000", "postgresql://me@host/db", "a:b@c.d", "x=1?token=2"),
        *("mysql://host/db?ssl_key=/a.pem", "http://host:5000/a and a mail to x@y.z", "http://[::1]:5000"),
    ],
)
def test_the_rest_stays(text):
    assert redact(text) == text


def test_trees():
    tree = {"logger": {"uri": "http://me:secret@host", "size": 3}, "list": ["https://secret@host", None]}
    assert redact_tree(tree) == {
        "logger": {"uri": "http://me:***@host", "size": 3},
        "list": ["https://***@host", None],
    }
