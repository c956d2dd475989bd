"""What happens on GitHub starts functions here. The secret is in eventrouter.toml; GitHub asks for it where the webhook is set up.

eventrouter serve webhook_github.py
eventrouter send webhook github '{"ref": "refs/heads/main", "after": "6113728f"}' --event push
"""

import msgspec

from eventrouter import Event, on
from eventrouter_webhook import webhook


class Push(msgspec.Struct):
    ref: str
    after: str


class Issue(msgspec.Struct):
    number: int
    title: str


class Opened(msgspec.Struct):
    issue: Issue


@on(webhook("github", events=["push"]), retries=5)
async def deploy(push: Push) -> None:
    branch = push.ref.removeprefix("refs/heads/")
    print(f"deploying {branch} at {push.after[:7]}", flush=True)


@on(webhook("github", events=["issues.opened"]))
async def triage(opened: Opened, event: Event) -> None:
    print(f"#{opened.issue.number} {opened.issue.title} (delivery {event.id})", flush=True)
