"""Names of spans, metrics and attributes, with units. OpenTelemetry's semantic conventions where one fits."""

RPC_SERVER_DURATION = "rpc.server.duration"
"""Histogram, ms: how long a call took on the server, by rpc.service, rpc.method and rpc.grpc.status_code."""

SPAN_PUBLISH = "publish {destination}"
SPAN_PROCESS = "process {destination}"

ATTRIBUTE_QUOTE_ID = "tapewatch.quote_id"
ATTRIBUTE_TAPE = "tapewatch.tape"
ATTRIBUTE_SYMBOL = "tapewatch.symbol"
ATTRIBUTE_BATCH_MESSAGES = "messaging.batch.message_count"
ATTRIBUTE_MESSAGING_SYSTEM = "messaging.system"
ATTRIBUTE_DESTINATION = "messaging.destination.name"
ATTRIBUTE_OPERATION = "messaging.operation.type"

MESSAGES_PROCESSED = "tapewatch.dispatch.messages"
"""Counter, {message}: queue messages processed, by outcome: done or returned."""

SCORES_RECORDED = "tapewatch.gateway.scores"
"""Counter, {score}: scores recorded, by tape (live, canary, replay) and whether the quote was new."""

DETECTIONS_RECORDED = "tapewatch.gateway.detections"
"""Counter, {detection}: detections recorded, by tape and typology."""

ALERTS_OPENED = "tapewatch.gateway.alerts_opened"
"""Counter, {alert}: alerts opened, by tape and typology."""

SCORES_MISMATCHED = "tapewatch.gateway.mismatches"
"""Counter, {score}: scores recorded again with another value than the first, by tape."""
