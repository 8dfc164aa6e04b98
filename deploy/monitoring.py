"""Alarms, dashboard and budget. docs/operations.md has a section for each alarm; a test holds it so.

How the services' own metrics get here: OTLP to the collector in their task, from there to CloudWatch in the embedded
metric format (collector/config.yaml). SQS, Lambda, DynamoDB, S3 and EventBridge publish theirs by themselves.
"""

import json
import math
from typing import Any, Final

from aws_cdk import ArnFormat, Duration, Stack
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from deploy.functions import MeshFunction
from deploy.mesh import MeshStack
from deploy.settings import DeploySettings
from deploy.storage import StorageStack
from services.pipeline.canary_play import DEADLINE_SECONDS, TASKS_DEADLINE_SECONDS
from services.runtime import telemetry_names as names

NAMESPACE: Final = "Tapewatch"
"""Of the services' own metrics, as the collector names it."""

_ANEW_MINUTES: Final = 2
"""From an alarm's actions being on to its being judged anew: a schedule starts up to a minute late."""

_PERIOD_SECONDS: Final = 300
_STARTING_PERIODS: Final = 2
"""What a dispatcher takes to start, and a play to begin."""

_COMPARE = cloudwatch.ComparisonOperator
_MISSING = cloudwatch.TreatMissingData


def service_metric(name: str, service: str, statistic: str, minutes: int = 5) -> cloudwatch.Metric:
    """A metric that a service publishes itself."""
    return cloudwatch.Metric(
        namespace=NAMESPACE,
        metric_name=name,
        dimensions_map={"service.name": f"tapewatch-{service}"},
        statistic=statistic,
        period=Duration.minutes(minutes),
    )


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


class MonitoringStack(Stack):
    """What pages whom."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: DeploySettings,
        storage: StorageStack,
        mesh: MeshStack,
        **given: Any,
    ) -> None:
        super().__init__(scope, construct_id, description="Tapewatch: alarms, dashboard and budget", **given)
        self._settings = settings
        self.topic = sns.Topic(self, "Alarms", display_name="Tapewatch alarms", enforce_ssl=True)
        if settings.monitoring.email:
            self.topic.add_subscription(subscriptions.EmailSubscription(settings.monitoring.email))
        self._let_publish("Alarms", "cloudwatch.amazonaws.com", ArnLike={"aws:SourceArn": self._alarm_arns()})
        self._let_publish("Budget", "budgets.amazonaws.com")
        self.alarms: dict[str, cloudwatch.Alarm] = {}
        self._queue_alarms(storage)
        self._dispatch_alarms(mesh)
        in_hours = self._surveillance_alarms()
        self._storage_alarms(storage)
        if settings.serving.events:
            self._push_alarm()
        self._only_in_market_hours(in_hours, storage.schedules)
        self._dashboard(storage, mesh)
        self._budget()

    def _let_publish(self, sid: str, service: str, **conditions: dict[str, str]) -> None:
        """Let an AWS service tell the topic. A policy of its own replaces SNS's default one, which lets the account."""
        self.topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid=sid,
                principals=[iam.ServicePrincipal(service)],
                actions=["sns:Publish"],
                resources=[self.topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": self.account}, **conditions},
            )
        )

    def _alarm_arns(self) -> str:
        """A pattern over this deployment's alarms."""
        names = f"{self._settings.name}-*"
        pattern: str = self.format_arn(
            service="cloudwatch", resource="alarm", resource_name=names, arn_format=ArnFormat.COLON_RESOURCE_NAME
        )
        return pattern

    def _alarm(
        self,
        name: str,
        what: str,
        metric: cloudwatch.IMetric,
        threshold: float,
        *,
        comparison: cloudwatch.ComparisonOperator = _COMPARE.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
        periods: int = 1,
        missing: cloudwatch.TreatMissingData = _MISSING.NOT_BREACHING,
    ) -> cloudwatch.Alarm:
        alarm = cloudwatch.Alarm(
            self,
            _pascal(name),
            alarm_name=f"{self._settings.name}-{name}",
            alarm_description=f"{what} What to do: docs/operations.md#{name}",
            metric=metric,
            threshold=threshold,
            comparison_operator=comparison,
            evaluation_periods=periods,
            treat_missing_data=missing,
        )
        alarm.add_alarm_action(actions.SnsAction(self.topic))
        alarm.add_ok_action(actions.SnsAction(self.topic))
        self.alarms[name] = alarm
        return alarm

    def _queue_alarms(self, storage: StorageStack) -> None:
        minute = Duration.minutes(1)
        self._alarm(
            "dead-letters",
            "A message can never be scored, or was delivered too often.",
            storage.dead_letters.metric_approximate_number_of_messages_visible(period=minute, statistic="Maximum"),
            1,
        )
        self._alarm(
            "oldest-message",
            "A quote waits longer in the queue than it should.",
            storage.queue.metric_approximate_age_of_oldest_message(period=minute, statistic="Maximum"),
            self._settings.queue.oldest_message_alarm_seconds,
            periods=3,
        )

    def _dispatch_alarms(self, mesh: MeshStack) -> None:
        function = mesh.dispatcher.function
        self._alarm(
            "dispatch-errors",
            "The dispatch Lambda crashed or ran out of time: it answers a failed batch, it does not fail.",
            function.metric_errors(period=Duration.minutes(5)),
            1,
        )
        self._alarm(
            "dispatch-throttled",
            "The account's Lambda concurrency is used up.",
            function.metric_throttles(period=Duration.minutes(5)),
            10,
            periods=3,
        )
        self._alarm(
            "task-failures",
            "A task of the mesh failed or could not be started.",
            cloudwatch.Metric(
                namespace="AWS/Events",
                metric_name="MatchedEvents",
                dimensions_map={"RuleName": str(mesh.failures.name)},
                statistic="Sum",
                period=Duration.minutes(5),
            ),
            1,
        )

        if mesh.reconciler is not None:
            self._task_mode_alarms(mesh.reconciler)

    def _task_mode_alarms(self, reconciler: MeshFunction) -> None:
        self._alarm(
            "oldest-batch",
            "A batch of task mode is not recorded for longer than it should be, or nobody says whether it is.",
            service_metric(names.BATCH_OLDEST, "dispatch", "Maximum"),
            self._settings.dispatch.oldest_batch_alarm_seconds,
            periods=3,
            missing=_MISSING.BREACHING,
        )
        self._alarm(
            "reconcile-errors",
            "The reconciler's Lambda crashed or ran out of time: it answers what is in the way, it does not fail.",
            reconciler.function.metric_errors(period=Duration.minutes(5)),
            1,
        )

    def _surveillance_alarms(self) -> list[cloudwatch.Alarm]:
        """Those that only mean something while the market is open."""
        silent = self._alarm(
            "silent-symbol",
            "A symbol that is expected gives no quotes, or nobody says whether it does.",
            service_metric(names.SILENT_SERIES, "ingest", "Maximum"),
            1,
            periods=2,
            missing=_MISSING.BREACHING,
        )
        self._alarm(
            "score-mismatch",
            "A quote that came again got another score: replay and live differ.",
            service_metric(names.SCORES_MISMATCHED, "gateway", "Sum"),
            1,
        )
        if not self._settings.dispatch.canary_interval_seconds:
            return [silent]  # nobody plays any, which is no failure
        return [silent, *self._canary_alarms()]

    def _canary_alarms(self) -> list[cloudwatch.Alarm]:
        """Nothing is measured before a dispatcher's first play ends, which is neither a miss nor an all-clear."""
        healthy = service_metric(names.CANARY_HEALTHY, "dispatch", "Minimum")
        deadline = DEADLINE_SECONDS if self._settings.dispatch.mode == "warm" else TASKS_DEADLINE_SECONDS
        missed = self._alarm(
            "canary-missed",
            "A known manipulation raised no alert.",
            healthy,
            1,
            comparison=_COMPARE.LESS_THAN_THRESHOLD,
            periods=2,
            missing=_MISSING.IGNORE,  # a dispatcher that was just replaced leaves the alarm as it is
        )
        unplayed = self._alarm(
            "canary-not-played",
            "Nobody says whether known manipulations raise alerts.",
            healthy,
            0,
            comparison=_COMPARE.LESS_THAN_THRESHOLD,
            periods=math.ceil(deadline / _PERIOD_SECONDS) + _STARTING_PERIODS,
            missing=_MISSING.BREACHING,
        )
        return [missed, unplayed]

    def _push_alarm(self) -> None:
        self._alarm(
            "push-behind",
            "Alerts are recorded, and are not pushed to AppSync Events.",
            service_metric(names.PUSH_BEHIND, "gateway", "Minimum"),  # 0 whenever a gateway had pushed all
            1,
            periods=2,
        )

    def _storage_alarms(self, storage: StorageStack) -> None:
        throttled = storage.table.metric("WriteThrottleEvents", period=Duration.minutes(5), statistic="Sum")
        self._alarm("table-throttled", "DynamoDB refuses writes for the moment.", throttled, 10, periods=3)
        for name, rule, what in (
            ("audit-copy", "changes-to-audit", "A part of the audit trail was not copied to the locked bucket."),
            ("audit-export-copy", "exports-to-audit", "An export of the table was not copied to the locked bucket."),
        ):
            dimensions = {
                "SourceBucket": storage.lake.bucket_name,
                "DestinationBucket": storage.audit.bucket_name,
                "RuleId": rule,
            }
            failed = cloudwatch.Metric(
                namespace="AWS/S3",
                metric_name="OperationsFailedReplication",
                dimensions_map=dimensions,
                statistic="Sum",
                period=Duration.minutes(15),
            )
            self._alarm(name, what, failed, 1)
        self._alarm(
            "schedules",
            "A schedule's call failed: the table's export, or what turns the market's alarms on and off.",
            cloudwatch.Metric(
                namespace="AWS/Scheduler",
                metric_name="TargetErrorCount",
                dimensions_map={"ScheduleGroup": str(storage.schedules.name)},
                statistic="Sum",
                period=Duration.minutes(5),
            ),
            1,
        )

    def _only_in_market_hours(self, alarms: list[cloudwatch.Alarm], group: scheduler.CfnScheduleGroup) -> None:
        """Silence after the close is no failure: these alarms page only while quotes must come.

        An alarm tells only of changes. One that went red overnight and stays so would never page, so once its actions
        are on it is set to OK: CloudWatch judges it anew within a minute, and what is still red is a change again.
        """
        role = iam.Role(
            self,
            "MarketHoursRole",
            assumed_by=iam.ServicePrincipal("scheduler.amazonaws.com"),
            description="Turns the actions of alarms on and off with the market, and has them judged anew",
        )
        role.add_to_policy(
            iam.PolicyStatement(
                sid="AlarmActions",
                actions=["cloudwatch:EnableAlarmActions", "cloudwatch:DisableAlarmActions", "cloudwatch:SetAlarmState"],
                resources=[alarm.alarm_arn for alarm in alarms],
            )
        )

        def schedule(construct_id: str, name: str, cron: str, call: str, given: dict[str, Any]) -> None:
            made = scheduler.CfnSchedule(
                self,
                construct_id,
                name=f"{self._settings.name}-{name}",
                group_name=group.name,
                schedule_expression=cron,
                schedule_expression_timezone=hours.timezone,
                flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
                target=scheduler.CfnSchedule.TargetProperty(
                    arn=f"arn:aws:scheduler:::aws-sdk:cloudwatch:{call}",
                    role_arn=role.role_arn,
                    input=json.dumps(given),
                ),
            )
            made.add_resource_dependency(group)

        hours = self._settings.market_hours
        every = {"AlarmNames": [alarm.alarm_name for alarm in alarms]}
        schedule("MarketOpens", "enable-market-alarms", hours.cron(hours.pages_from), "enableAlarmActions", every)
        schedule("MarketCloses", "disable-market-alarms", hours.cron(hours.pages_until), "disableAlarmActions", every)
        anew = hours.cron(hours.pages_from, later_minutes=_ANEW_MINUTES)
        for name, alarm in self.alarms.items():
            if alarm in alarms:
                state = {
                    "AlarmName": alarm.alarm_name,
                    "StateValue": "OK",
                    "StateReason": "Judged anew: quotes must come",
                }
                schedule(f"Anew{_pascal(name)}", f"judge-{name}-anew", anew, "setAlarmState", state)

    def _dashboard(self, storage: StorageStack, mesh: MeshStack) -> None:
        function, queue = mesh.dispatcher.function, storage.queue
        minute = Duration.minutes(1)
        graphs = [
            ("Waiting and in flight", [queue.metric_approximate_number_of_messages_visible(period=minute),
                                       queue.metric_approximate_number_of_messages_not_visible(period=minute)]),
            ("Oldest message, seconds", [queue.metric_approximate_age_of_oldest_message(period=minute)]),
            ("Dispatch Lambda", [function.metric_invocations(period=minute), function.metric_errors(period=minute),
                                 function.metric_duration(period=minute, statistic="p95")]),
            ("Scores, detections, alerts", [service_metric(name, "gateway", "Sum", 1) for name in
                                            (names.SCORES_RECORDED, names.DETECTIONS_RECORDED, names.ALERTS_OPENED)]),
            ("Silence and canaries", [service_metric(names.SILENT_SERIES, "ingest", "Maximum"),
                                      service_metric(names.CANARY_HEALTHY, "dispatch", "Minimum")]),
            ("Scorer", [mesh.services["scorer"].metric_cpu_utilization(),
                        mesh.services["scorer"].metric_memory_utilization()]),
        ]  # fmt: skip
        cloudwatch.Dashboard(
            self,
            "Dashboard",
            dashboard_name=self._settings.name,
            widgets=[
                [cloudwatch.AlarmStatusWidget(title="Alarms", alarms=list(self.alarms.values()), width=24, height=3)],
                *(
                    [
                        cloudwatch.GraphWidget(title=title, left=metrics, width=12)
                        for title, metrics in graphs[i : i + 2]
                    ]
                    for i in range(0, len(graphs), 2)
                ),
            ],
        )

    def _budget(self) -> None:
        budget = budgets.CfnBudget
        told = [budget.SubscriberProperty(subscription_type="SNS", address=self.topic.topic_arn)]
        budget(
            self,
            "Budget",
            budget=budget.BudgetDataProperty(
                budget_name=f"{self._settings.name}-monthly",
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budget.SpendProperty(amount=self._settings.monitoring.monthly_budget_usd, unit="USD"),
            ),
            notifications_with_subscribers=[
                budget.NotificationWithSubscribersProperty(
                    notification=budget.NotificationProperty(
                        comparison_operator="GREATER_THAN",
                        notification_type=kind,
                        threshold=threshold,
                        threshold_type="PERCENTAGE",
                    ),
                    subscribers=told,
                )
                for kind, threshold in (("ACTUAL", 80), ("FORECASTED", 100))
            ],
        )
