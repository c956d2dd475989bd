"""A CSV file dropped into `uploads/<shop>/` becomes a JSON summary in the bucket `summaries`."""

import csv
import io
import json

from eventrouter import Reject, on
from eventrouter_s3 import Bucket, S3Object, s3

uploads, summaries = Bucket("uploads"), Bucket("summaries")


@on(s3("uploads", key="{shop}/{name}.csv"), timeout=30)
async def summarize(uploaded: S3Object, shop: str, name: str) -> None:
    """`shop` and `name` come from the key. A file without prices is rejected: no retry would change it."""
    rows = list(csv.DictReader(io.StringIO((await uploads.read(uploaded.key)).decode())))
    if not rows or "price" not in rows[0]:
        raise Reject(f"{uploaded.key} has no column 'price'")
    total = round(sum(float(row["price"]) for row in rows), 2)
    await summaries.write(f"{shop}/{name}.json", json.dumps({"shop": shop, "rows": len(rows), "total": total}))


@on(s3("uploads", "ObjectRemoved:*", suffix=".csv"))
async def forget(removed: S3Object) -> None:
    await summaries.delete(removed.key.removesuffix(".csv") + ".json")
