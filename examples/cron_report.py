"""By the clock: a report on working days, a probe every five minutes, one moment in the future."""

from eventrouter import Event, on
from eventrouter_cron import at, cron, rate
from eventrouter_s3 import Bucket

reports = Bucket("reports")


@on(cron("0 7 * * MON-FRI", timezone="Europe/Berlin"), timeout=60)
async def daily(event: Event) -> None:
    """If the router was down at seven, this runs once when it is back."""
    await reports.write(f"{event.envelope()['time'][:10]}.txt", "all is well\n")


@on(rate("5 minutes", catch_up="none"))
async def probe() -> None:
    print("still here", flush=True)


@on(at("2099-12-31T23:59:00", timezone="Asia/Tokyo"))
async def fireworks() -> None:
    print("happy new century", flush=True)
