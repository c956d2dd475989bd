"""A queue between those who have work and the function that does it; what can't be done ends up in a second queue."""

import msgspec

from eventrouter import Context, on
from eventrouter_http import http
from eventrouter_sqs import Queue, sqs

jobs, failed = Queue("resize-jobs"), Queue("failed-jobs")  # eventrouter.toml says how often a job is tried


class Job(msgspec.Struct):
    image: str
    width: int


@on(http("POST /jobs"))
async def submit(job: Job) -> dict[str, str]:
    return {"id": await jobs.send(job, attributes={"from": "http"})}  # on disk when the caller gets its id


@on(sqs("resize-jobs"), concurrency=2)  # two at once; the others wait in the queue
async def resize(job: Job, context: Context) -> None:
    if job.width < 1:
        raise ValueError(f"attempt {context.attempt}: {job.image} can't be {job.width} wide")
    print(f"{job.image} is {job.width} wide now", flush=True)


@on(http("POST /retry"))
async def retry() -> dict[str, int]:
    """Once the reason is gone, failed jobs go back to the queue that they came from."""
    return {"jobs": await failed.redrive()}


@on(http("POST /failed"))
async def sort_out() -> list[str]:
    """Takes from a queue by hand: what is not deleted is there again after the visibility time-out."""
    images = []
    for message in await failed.receive(10):
        images.append(message.json()["image"])
        await failed.delete(message)
    return images
