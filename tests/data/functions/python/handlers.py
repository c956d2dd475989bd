import os
import time


def echo(event, context):
    return event


def introspect(event, context):
    return {
        "event": event,
        "id": context.aws_request_id,
        "name": context.function_name,
        "left": context.get_remaining_time_in_millis(),
        "environ": dict(os.environ),
    }


def fails(event, context):
    raise LookupError("no such thing")


def hangs(event, context):
    time.sleep(60)


def large(event, context):
    return "x" * event["size"]
