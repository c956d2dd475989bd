"""Who signs how: vectors of others, the standard's own library, openssl."""

from __future__ import annotations

import base64
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from eventrouter_webhook.signatures import PROVIDERS, Provider, Scheme, SignatureError, key_of, sign, verify
from servers import program

NAMES: dict[str, Provider] = {"standard-webhooks": "standard", "github": "github", "stripe": "stripe"}
NOW = 1_767_225_600
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SCHEME = Scheme(header="X-Sign", prefix="v=", template="{id}:{timestamp}:{body}", timestamp_header="X-Time", id_header="X-Id")


def openssl(text: bytes, key: bytes, algorithm: str = "sha256") -> bytes:
    command = [program("openssl", "openssl"), "dgst", f"-{algorithm}", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}", "-binary"]
    return subprocess.run(command, input=text, capture_output=True, check=True).stdout


def good(provider: Provider, headers: dict[str, str], body: bytes, *secrets: str, now: float = NOW, **more: Any) -> bool:
    try:
        verify(provider, headers, body, secrets, now=now, **more)
    except SignatureError:
        return False
    return True


def test_vectors_of_others(cases: Path) -> None:
    count = 0
    for line in (cases / "webhooks/webhook_signatures.jsonl").read_text().splitlines():
        case = json.loads(line)
        provider, secret = NAMES[case["scheme"]], case["secret"]
        if case["expected"] == "configuration_error":
            with pytest.raises(ValueError, match="empty"):
                key_of(provider, secret)
        else:
            now, tolerance = case.get("now_epoch", 0), case.get("tolerance_s")
            found = good(provider, case["headers"], case["body"].encode(), secret, now=now, tolerance=tolerance)
            assert found == (case["expected"] == "valid"), case["name"]
        count += 1
    assert count >= 25


@pytest.mark.parametrize("provider", PROVIDERS)
def test_only_the_very_body_and_a_known_secret_will_do(provider: Provider) -> None:
    body, scheme = b'{"n": 1}', SCHEME if provider == "hmac" else None
    headers = sign(provider, body, SECRET, now=NOW, id="msg_1", scheme=scheme)
    assert good(provider, headers, body, SECRET, scheme=scheme)
    assert good(provider, {name.upper(): value for name, value in headers.items()}, body, SECRET, scheme=scheme)
    assert good(provider, headers, body, "whsec_bmV3", SECRET, scheme=scheme)
    assert good(provider, headers, body, SECRET, "whsec_bmV3", scheme=scheme)
    assert not good(provider, headers, body, "whsec_bmV3", scheme=scheme)
    assert not good(provider, headers, body, scheme=scheme)
    assert not good(provider, headers, body + b" ", SECRET, scheme=scheme)
    for name, value in headers.items():
        without = {key: text for key, text in headers.items() if key != name}
        assert not good(provider, without, body, SECRET, scheme=scheme)
        for wrong in ("", value[:-1], value + "0", "é\udcff", value.replace("=", "", 1) if "=" in value else "x"):
            assert not good(provider, {**headers, name: wrong}, body, SECRET, scheme=scheme), (name, wrong)


@pytest.mark.parametrize("provider", ["stripe", "slack", "standard", "hmac"])
def test_a_signed_time_must_be_near(provider: Provider) -> None:
    scheme = SCHEME if provider == "hmac" else None
    headers = sign(provider, b"{}", SECRET, now=NOW, id="msg_1", scheme=scheme)
    for off, near in ((300, True), (301, False), (-300, True), (-301, False)):
        assert good(provider, headers, b"{}", SECRET, now=NOW + off, scheme=scheme) is near
    assert good(provider, headers, b"{}", SECRET, now=NOW + 10**6, tolerance=None, scheme=scheme)
    assert not good(provider, headers, b"{}", SECRET, now=NOW + 11, tolerance=10, scheme=scheme)


def test_the_library_of_the_standard_agrees() -> None:
    oracle = standardwebhooks.Webhook(SECRET)
    now = datetime.now(UTC)
    body = '{"type": "user.created"}'
    theirs = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now.timestamp())), "webhook-signature": oracle.sign("msg_1", now, body)}
    assert good("standard", theirs, body.encode(), SECRET, now=now.timestamp())
    ours = sign("standard", body.encode(), SECRET, now=now.timestamp(), id="msg_2")
    assert oracle.verify(body, ours) == {"type": "user.created"}
    svix = {name.replace("webhook", "svix"): value for name, value in theirs.items()}
    assert good("standard", svix, body.encode(), SECRET, now=now.timestamp())


def test_openssl_agrees() -> None:
    assert good("github", {"x-hub-signature-256": f"sha256={openssl(b'{}', b'key').hex()}"}, b"{}", "key")
    slack = {"X-Slack-Request-Timestamp": str(NOW), "X-Slack-Signature": f"v0={openssl(f'v0:{NOW}:a=b'.encode(), b'key').hex()}"}
    assert good("slack", slack, b"a=b", "key")
    stripe = openssl(f"{NOW}.{{}}".encode(), b"key").hex()
    assert good("stripe", {"Stripe-Signature": f"t={NOW},v0=x,v1=bad,v1={stripe}"}, b"{}", "key")
    for algorithm in ("sha1", "sha256", "sha512"):
        raw = openssl(b"body", b"key", algorithm)
        for encoding, text in (("hex", raw.hex()), ("base64", base64.b64encode(raw).decode())):
            scheme = Scheme(header="X-Sign", algorithm=algorithm, encoding=encoding)  # type: ignore[arg-type]
            assert good("hmac", {"X-Sign": text}, b"body", "key", scheme=scheme)


def test_githubs_old_signature_alone_does_not_do() -> None:
    old = f"sha1={openssl(b'{}', b'key', 'sha1').hex()}"
    assert not good("github", {"X-Hub-Signature": old}, b"{}", "key")
    assert not good("github", {"X-Hub-Signature-256": old}, b"{}", "key")


def test_why_is_said_without_the_secret() -> None:
    with pytest.raises(SignatureError, match=r"^no signature of 1 fits any of 2 secrets$"):
        verify("github", {"X-Hub-Signature-256": "sha256=00"}, b"", ["hunter2", "old"], now=NOW)
    with pytest.raises(SignatureError, match="there is no header Stripe-Signature"):
        verify("stripe", {}, b"", ["hunter2"], now=NOW)
    with pytest.raises(SignatureError, match="signed 400 s ago; the tolerance is 300 s"):
        verify("slack", sign("slack", b"", "hunter2", now=NOW - 400, id=""), b"", ["hunter2"], now=NOW)
    with pytest.raises(ValueError, match="base64") as error:
        key_of("standard", "hunter2!")
    assert "hunter2" not in str(error.value)
