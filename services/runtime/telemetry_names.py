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

ATTRIBUTE_MESSAGE_ID = "messaging.message.id"
ATTRIBUTE_FUNCTION_INVOCATION = "faas.invocation_id"
ATTRIBUTE_FUNCTION_TRIGGER = "faas.trigger"
ATTRIBUTE_FUNCTION_COLD_START = "faas.coldstart"
ATTRIBUTE_CLOUD_RESOURCE = "cloud.resource_id"

MESSAGES_PROCESSED = "tapewatch.dispatch.messages"
"""Counter, {message}: queue messages processed, by outcome: done or returned."""

TASKS_LAUNCHED = "tapewatch.dispatch.task_launches"
"""Counter, {launch}: launches of one-shot scorers, by outcome: launched, no_capacity or refused."""

TASKS_ENDED = "tapewatch.dispatch.task_ends"
"""Counter, {task}: attempts that ended, by outcome: recorded, partly, transient, crashed or never_reported."""

BATCHES_OPEN = "tapewatch.dispatch.open_batches"
"""Gauge, {batch}: batches in the ledger that are not recorded."""

BATCH_OLDEST = "tapewatch.dispatch.oldest_batch"
"""Gauge, s: age of the oldest batch in the ledger that is not recorded; 0 when there is none."""

SPAN_ENTER = "enter ledger"
SPAN_LAUNCH = "launch task"
SPAN_RUN_ONCE = "run once"
SPAN_LOAD_MODEL = "load model"
SPAN_SCORE = "score batch"
SPAN_SETTLE = "settle task"
ATTRIBUTE_BATCH = "tapewatch.batch_id"
ATTRIBUTE_ATTEMPT = "tapewatch.attempt"
ATTRIBUTE_CORRELATION = "messaging.message.conversation_id"
"""CORRELATION_ID of a one-shot task: its batch's id and the attempt."""

ATTRIBUTE_TASK_ARN = "aws.ecs.task.arn"

SCORES_RECORDED = "tapewatch.gateway.scores"
"""Counter, {score}: scores recorded, by tape (live, canary, replay) and whether the quote was new."""

DETECTIONS_RECORDED = "tapewatch.gateway.detections"
"""Counter, {detection}: detections recorded, by tape and typology."""

ALERTS_OPENED = "tapewatch.gateway.alerts_opened"
"""Counter, {alert}: alerts opened, by tape and typology."""

SCORES_MISMATCHED = "tapewatch.gateway.mismatches"
"""Counter, {score}: scores recorded again with another value than the first, by tape."""

CACHE_READS = "tapewatch.gateway.cache_reads"
"""Counter, {read}: detections asked of DAX, by outcome: hit, or miss, failed or away, where the table answered."""

ALERTS_PUSHED = "tapewatch.gateway.alerts_pushed"
"""Counter, {change}: alert changes pushed to AppSync Events, by outcome: delivered or refused."""

PUSH_FAILURES = "tapewatch.gateway.push_failures"
"""Counter, {failure}: pushes that failed and are tried again."""

PUSH_BEHIND = "tapewatch.gateway.push_behind"
"""Gauge, {change}: alert changes recorded and not yet pushed."""

ATTRIBUTE_VALUE = "tapewatch.value"
ATTRIBUTE_INTERVAL = "tapewatch.interval_seconds"
ATTRIBUTE_MODEL = "tapewatch.model_version"
ATTRIBUTE_AGREEMENT = "tapewatch.agreement"
ATTRIBUTE_CANARY = "tapewatch.canary"

MODEL_STABILITY_INDEX = "tapewatch.scorer.stability_index"
"""Gauge, 1: population stability index of a feature or of the score against training, by kind of tape and value."""

SHADOW_QUOTES = "tapewatch.scorer.shadow.quotes"
"""Counter, {quote}: quotes that a shadow model judged, by whether it agrees on the detection."""

SHADOW_DIFFERENCE = "tapewatch.scorer.shadow.difference"
"""Gauge, 1: mean absolute difference of a shadow's ensemble from the recorded one."""

CANARY_MODEL_QUOTES = "tapewatch.scorer.canary_model.quotes"
"""Counter, {quote}: quotes that a canary model judged for real."""

CANARY_PLAYED = "tapewatch.canary.played"
"""Counter, {canary}: canaries played through the live path, by name and whether they alerted."""

CANARY_DELAY = "tapewatch.canary.delay"
"""Histogram, s: from the publication of a canary's first manipulated bar to its alert being seen, by name."""

CANARY_HEALTHY = "tapewatch.canary.healthy"
"""Gauge, 1: 1 when the newest play's canaries all alerted, 0 when one was missed; nothing before the first play."""

SILENT_SERIES = "tapewatch.ingest.silent_series"
"""Gauge, {series}: live series that are expected or were heard before, and are not heard now; 0 while MARKET_CALENDAR's
exchange is closed."""
